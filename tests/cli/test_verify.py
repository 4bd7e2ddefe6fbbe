from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def test_a_whole_bundle_is_good(invoke: Invoke, invoke_json: InvokeJson, bundle: Path) -> None:
    assert "good" in invoke("verify", bundle).stdout
    payload = invoke_json("verify", bundle)
    assert (payload["ok"], payload["name"], payload["files"], payload["signed_by"]) == (True, "brightest", 4, None)


def test_an_altered_bundle_ends_with_9(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    altered = tmp_path / "altered.edgekit"
    altered.write_bytes(data)
    assert invoke("verify", altered, code=9).stdout == ""


def test_keygen_then_sign_then_verify(
    invoke: Invoke, invoke_json: InvokeJson, new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    key = tmp_path / "release.key"
    made = invoke_json("keygen", key)
    assert made["public_key"] == f"{key}.pub"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    signed = new_bundle(tmp_path / "signed.edgekit", sign_key=key)
    assert invoke_json("verify", signed, "--key", f"{key}.pub")["key_checked"] is True
    assert "by the key given" in invoke("verify", signed, "--key", f"{key}.pub").stdout
    assert "not checked" in invoke("verify", signed).stdout


def test_an_unsigned_bundle_fails_where_a_key_is_given(invoke: Invoke, bundle: Path, tmp_path: Path) -> None:
    invoke("keygen", tmp_path / "key")
    assert "not signed" in invoke("verify", bundle, "--key", tmp_path / "key.pub", code=9).stderr


def test_keygen_never_overwrites_a_key(invoke: Invoke, tmp_path: Path) -> None:
    invoke("keygen", tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    invoke("keygen", tmp_path / "key", code=10)
    assert (tmp_path / "key").read_bytes() == before
