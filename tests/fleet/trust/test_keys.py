from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edgekit.bundle import generate_key
from edgekit.errors import OutputError, StoreError, UsageError
from edgekit.fleet.trust.files import read_private, write_private
from edgekit.fleet.trust.keys import ALGORITHMS, KeyFolder, make_signer, read_public, read_signer


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_that_was_kept_signs_as_before(tmp_path: Path, algorithm: str) -> None:
    folder, made = KeyFolder(tmp_path / "keys"), make_signer(algorithm)  # type: ignore[arg-type]
    path = folder.keep("root", made)
    (found,) = folder.signers("root", [made.public_key])
    signature = found.sign(b"payload")
    made.public_key.verify_signature(signature, b"payload")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_keys_of_edgekit_keygen_serve_here(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "own.key")
    assert read_signer(tmp_path / "own.key").public_key.keyid == read_public(public).keyid


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    folder, made = KeyFolder(tmp_path / "keys"), make_signer()
    folder.keep("root", made).chmod(0o640)
    with pytest.raises(StoreError, match="may be read by others"):
        folder.signers("root", [made.public_key])


def test_a_key_under_another_ones_name_is_refused(tmp_path: Path) -> None:
    folder, made, other = KeyFolder(tmp_path / "keys"), make_signer(), make_signer()
    folder.keep("root", made)
    folder.path("root", made.public_key.keyid).rename(folder.path("root", other.public_key.keyid))
    with pytest.raises(StoreError, match="another key than its name says"):
        folder.signers("root", [other.public_key])


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="private key"):
        read_signer(path)
    with pytest.raises(UsageError, match="public key"):
        read_public(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_signer(tmp_path / "none")


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    secret = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (tmp_path / "key").write_bytes(secret)
    with pytest.raises(UsageError, match="no private key that can sign"):
        read_signer(tmp_path / "key")


def test_export_copies_or_moves_and_never_overwrites(tmp_path: Path) -> None:
    folder, made = KeyFolder(tmp_path / "keys"), make_signer()
    folder.keep("root", made)
    (copy,) = folder.export("root", [made.public_key], tmp_path / "stick", move=False)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert folder.signers("root", [made.public_key])
    with pytest.raises(OutputError, match="exists"):
        folder.export("root", [made.public_key], tmp_path / "stick", move=True)
    assert folder.signers("root", [made.public_key])
    (moved,) = folder.export("root", [made.public_key], tmp_path / "other", move=True)
    assert not folder.signers("root", [made.public_key])
    assert moved.read_bytes() == copy.read_bytes()
    with pytest.raises(UsageError, match="no key of the role root lies"):
        folder.export("root", [made.public_key], tmp_path / "third", move=True)


def test_a_private_file_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.stat().st_mode & 0o777, read_private(path)) == (0o600, b"new")
    with pytest.raises(OSError):
        write_private(tmp_path / "none" / "secret", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]
