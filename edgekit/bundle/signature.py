"""Who made a bundle: an ed25519 signature (RFC 8032) over the exact bytes of its index, which seals all the rest.

`cryptography` (the extra `sign`) is imported when a key is used, never before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgekit.bundle.layout import canonical_json
from edgekit.bundle.strict import Strict
from edgekit.errors import MissingExtraError, OutputError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class Signature(Strict):
    """`public_key` (32 bytes) and `signature` (64 bytes) in hexadecimal. The key given when opening decides."""

    schema_version: Literal[1] = 1
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


def generate_key(path: Path) -> Path:
    """Writes a private key (PEM, readable by its owner only) at `path` and its public half at `path`.pub.

    Returns the public half's path. Raises OutputError where either exists or cannot be written.
    """
    _need_cryptography("making a key")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(path.name + ".pub")
    for target in (path, public_path):
        if target.exists():
            raise OutputError(f"{target} exists", hint="a key is never overwritten: choose another name")
    try:
        _write_new(path, private, 0o600)
        _write_new(public_path, public, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write the key {path}: {error.strerror}", hint="choose a writable folder") from error
    return public_path


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def sign(index: bytes, key: Path) -> Signature:
    """Raises SignatureError for a file that is not an ed25519 private key."""
    _need_cryptography("signing a bundle")
    private = _load_private(key)
    public = private.public_key().public_bytes_raw().hex()
    return Signature(public_key=public, signature=private.sign(index).hex())


def check_key(key: Path) -> None:
    """Raises SignatureError for a file that is not an ed25519 public key."""
    _need_cryptography("checking a signature")
    _load_public(key)


def check(signature: Signature, index: bytes, key: Path, origin: str) -> None:
    """Raises SignatureError where the owner of `key` (a public key, PEM) did not sign `index`."""
    _need_cryptography("checking a signature")
    from cryptography.exceptions import InvalidSignature

    public = _load_public(key)
    wanted = public.public_bytes_raw().hex()
    if signature.public_key != wanted:
        raise SignatureError(
            f"{origin} is signed by the key {signature.public_key[:16]}..., not by {key} ({wanted[:16]}...)",
            hint="give the public key of whoever made the bundle, or do not trust it",
        )
    try:
        public.verify(bytes.fromhex(signature.signature), index)
    except InvalidSignature:
        raise SignatureError(
            f"the signature of {origin} does not fit its index", hint="it was altered: fetch it again"
        ) from None


def _load_private(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read_key(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} is not a private key: {error}", hint=_KEY_HINT) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} holds a {type(key).__name__}, allowed ed25519", hint=_KEY_HINT)
    return key


def _load_public(path: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} is not a public key: {error}", hint="give the file that ends in .pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} holds a {type(key).__name__}, allowed ed25519", hint=_KEY_HINT)
    return key


_KEY_HINT = "`openssl genpkey -algorithm ed25519 -out KEY` makes one (PEM, without a password)"


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(64 << 10)
    except OSError as error:
        raise SignatureError(f"cannot read the key {path}: {error.strerror}", hint="check the path") from error


def _need_cryptography(purpose: str) -> None:
    try:
        import cryptography.exceptions  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign", purpose) from error
