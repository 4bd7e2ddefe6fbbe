from __future__ import annotations

import json
import stat
import sys

import pytest

from edgekit.bundle import Bundle, generate_key, verify
from edgekit.errors import MissingExtraError, OutputError, SignatureError


@pytest.fixture
def key(tmp_path):
    pytest.importorskip("cryptography", reason="signatures need the extra sign")
    return tmp_path / "key", generate_key(tmp_path / "key")


def test_signed_bundle_opens_with_its_public_key(net, tmp_path, key, as_directory):
    private, public = key
    path = net.write(tmp_path / "a", sign_key=private, as_directory=as_directory)
    result = verify(path, public)
    assert result.key_checked
    assert result.signed_by == Bundle.open(path).signed_by


def test_signing_is_deterministic(net, tmp_path, key):
    first, second = (net.write(tmp_path / name, sign_key=key[0]).read_bytes() for name in "ab")
    assert first == second


def test_unsigned_bundle_is_refused_where_a_key_is_given(bundle_path, key):
    with pytest.raises(SignatureError, match="not signed"):
        Bundle.open(bundle_path, key[1])
    with pytest.raises(SignatureError, match="cannot read the key"):
        Bundle.open(bundle_path, key[1].with_name("missing"))


def test_other_key_is_refused(net, tmp_path, key):
    path = net.write(tmp_path / "a", sign_key=key[0])
    with pytest.raises(SignatureError, match="not by"):
        Bundle.open(path, generate_key(tmp_path / "other"))


def test_signature_of_another_bundle_is_refused(net, tmp_path, key):
    signed = net.write(tmp_path / "a", sign_key=key[0], as_directory=True)
    other = type(net)({**net.files, "assets/tokenizer.json": b"{}"})
    victim = other.write(tmp_path / "b", as_directory=True)
    (victim / "signature.json").write_bytes((signed / "signature.json").read_bytes())
    with pytest.raises(SignatureError, match="does not fit"):
        Bundle.open(victim, key[1])


def test_claimed_key_does_not_help_a_forger(net, tmp_path, key):
    generate_key(tmp_path / "forger")
    path = net.write(tmp_path / "a", sign_key=tmp_path / "forger", as_directory=True)
    honest = net.write(tmp_path / "b", sign_key=key[0], as_directory=True)
    forged = json.loads((path / "signature.json").read_text())
    forged["public_key"] = json.loads((honest / "signature.json").read_text())["public_key"]
    (path / "signature.json").write_text(json.dumps(forged))
    with pytest.raises(SignatureError):
        Bundle.open(path, key[1])


def test_private_key_is_readable_by_its_owner_only_and_never_overwritten(key, tmp_path):
    private, public = key
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public == private.with_name("key.pub")
    with pytest.raises(OutputError, match="never overwritten"):
        generate_key(private)
    with pytest.raises(OutputError, match="cannot write"):
        generate_key(tmp_path / "nowhere" / "key")


def test_files_that_are_no_keys_are_named(net, tmp_path, key):
    (tmp_path / "text").write_text("not a key")
    with pytest.raises(SignatureError, match="not a private key"):
        net.write(tmp_path / "a", sign_key=tmp_path / "text")
    with pytest.raises(SignatureError, match="cannot read the key"):
        net.write(tmp_path / "a", sign_key=tmp_path / "missing")
    path = net.write(tmp_path / "a", sign_key=key[0])
    with pytest.raises(SignatureError, match=r"\.pub"):
        Bundle.open(path, key[0])


def test_keys_of_another_kind_are_refused(net, tmp_path, key):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import x25519

    other = x25519.X25519PrivateKey.generate()
    (tmp_path / "x").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(SignatureError, match="allowed ed25519"):
        net.write(tmp_path / "a", sign_key=tmp_path / "x")


def test_missing_cryptography_names_the_extra(net, tmp_path, monkeypatch):
    path = net.write(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    Bundle.open(path).close()
    with pytest.raises(MissingExtraError, match=r"edgekit\[sign\]"):
        generate_key(tmp_path / "key")
    with pytest.raises(MissingExtraError):
        net.write(tmp_path / "b", sign_key=tmp_path / "key")
