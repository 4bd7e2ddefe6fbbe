"""The keys that sign what may be installed: `<role>-<front of its id>.pem` in a folder, mode 0600.

A role of The Update Framework has one key here. One that lies elsewhere is offline: what it has to sign waits until its
owner brings it, or signs a draft where it is (`edgekit fleet keys`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgekit.errors import OutputError, StoreError, UsageError
from edgekit.fleet.trust.files import read_private, write_private

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: tuple[Role, ...] = ("root", "targets", "snapshot", "timestamp")
Algorithm = Literal["ed25519", "ecdsa"]
ALGORITHMS: tuple[Algorithm, ...] = ("ed25519", "ecdsa")


def make_signer(algorithm: Algorithm = "ed25519") -> CryptoSigner:
    """`ecdsa`: on P-256."""
    return CryptoSigner.generate_ed25519() if algorithm == "ed25519" else CryptoSigner.generate_ecdsa()


def read_signer(path: Path, *, strict: bool = False) -> CryptoSigner:
    """A private key as `edgekit fleet keys export`, `edgekit keygen` or openssl write it. Raises UsageError for a file
    that is none; with `strict` StoreError where others may read it (file systems of memory sticks know no modes)."""
    try:
        data = read_private(path) if strict else path.read_bytes()
        return CryptoSigner(serialization.load_pem_private_key(data, None))
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}", hint="check the path") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, LibraryError) as error:
        raise UsageError(
            f"{path} holds no private key that can sign: {error}", hint="an ed25519 or P-256 key as PEM, no password"
        ) from error


def read_public(path: Path) -> SSlibKey:
    """A public key as `edgekit keygen` writes it. Raises UsageError."""
    try:
        return SSlibKey.from_crypto(serialization.load_pem_public_key(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}", hint="check the path") from error
    except (ValueError, UnsupportedAlgorithm, LibraryError) as error:
        raise UsageError(f"{path} holds no public key: {error}", hint="an ed25519 or P-256 key as PEM") from error


class KeyFolder:
    """`folder` is made at the first key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, role: Role, key: str) -> Path:
        return self.folder / f"{role}-{key[:16]}.pem"

    def keep(self, role: Role, signer: CryptoSigner) -> Path:
        """Raises StoreError where it cannot be written."""
        path = self.path(role, signer.public_key.keyid)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, signer.private_bytes)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}", hint="check the folder") from error
        return path

    def signers(self, role: Role, keys: Iterable[Key]) -> list[CryptoSigner]:
        """Of those keys, the ones that lie here. Raises UsageError, StoreError for one that cannot be used."""
        paths = {key.keyid: self.path(role, key.keyid) for key in keys}
        found = [(path, read_signer(path, strict=True)) for path in paths.values() if path.exists()]
        for path, signer in found:
            if signer.public_key.keyid not in paths:
                raise StoreError(
                    f"{path} holds another key than its name says", hint="restore the keys from the backup"
                )
        return [signer for _, signer in found]

    def export(self, role: Role, keys: Sequence[Key], folder: Path, *, move: bool) -> list[Path]:
        """Copies into `folder`; with `move` none stays here. Raises UsageError where there is none here, OutputError
        where one is there already or cannot be written."""
        found = [path for path in (self.path(role, key.keyid) for key in keys) if path.exists()]
        if not found:
            raise UsageError(f"no key of the role {role} lies in {self.folder}", hint="edgekit fleet keys lists them")
        copies = []
        for path in found:
            copy = folder / path.name
            if copy.exists():
                raise OutputError(f"{copy} exists", hint="a key is never overwritten: choose another folder")
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_private(copy, read_private(path))
            except OSError as error:
                raise OutputError(f"cannot write {copy}: {error.strerror}", hint="choose another folder") from error
            copies.append(copy)
        for path in found if move else ():
            path.unlink()
        return copies

    def drop(self, role: Role, key: str) -> None:
        """One that counts no more."""
        self.path(role, key).unlink(missing_ok=True)
