"""Kernels into bundles by the command: what changes of a bundle, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.bundle import Bundle, generate_key, verify
from edgekit.errors import SignatureError
from edgekit.runtimes.cubins import TABLE, read_table
from tests.runtimes.cubins.conftest import edgekit, plain_bundle

pytest.importorskip("triton")
KERNEL = "kmeans-update"  # compiles fastest


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return plain_bundle(tmp_path / "net.edgekit")


def test_the_new_bundle_is_the_old_one_with_code_and_its_table(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed.edgekit"
    told = json.loads(
        edgekit("kernels", "pack", plain, "--arch", "sm_87", "--kernels", KERNEL, "-o", output, "--json").stdout
    )
    with Bundle.open(plain) as before, Bundle.open(output) as after:
        assert told["digest"] == after.digest != before.digest and told["signed_by"] is None
        table = read_table(after)
        assert table is not None and [one.kernel for one in table.kernels] == [KERNEL]
        assert told["kernels"] == json.loads(table.to_bytes())
        added = {file.file for file in after.manifest.assets} - {file.file for file in before.manifest.assets}
        assert added == {TABLE, *(one.file for one in table.kernels)}
        for field in ("parts", "variants", "codecs", "provenance"):
            assert getattr(after.manifest, field) == getattr(before.manifest, field)
        assert after.manifest.plan_digest("net") == before.manifest.plan_digest("net")
        assert after.manifest.codec_digest("cut") == before.manifest.codec_digest("cut")
        assert after.part_path().read_bytes() == before.part_path().read_bytes()
        assert after.report == before.report and after.report_html == before.report_html
    text = edgekit("inspect", output).stdout
    assert "Compiled kernels (triton" in text and KERNEL in text[text.index("Compiled kernels") :]
    shown = json.loads(edgekit("inspect", output, "--json").stdout)
    assert shown["kernels"] == told["kernels"]
    assert json.loads(edgekit("inspect", plain, "--json").stdout)["kernels"] is None


def test_packing_again_replaces_the_code_and_gives_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.edgekit" for name in ("first", "second", "third"))
    edgekit("kernels", "pack", plain, "--arch", "sm_80,sm_90", "--kernels", KERNEL, "-o", first)
    edgekit("kernels", "pack", first, "--arch", "sm_87", "--kernels", KERNEL, "-o", second, "--directory")
    with Bundle.open(second) as bundle:
        table = read_table(bundle)
        assert table is not None and table.architectures == ("sm_87",)
        assert len(bundle.manifest.assets) == 3
        assert str(Path.cwd()).encode() not in bundle.asset_path(table.kernels[0].file).read_bytes()
    edgekit("kernels", "pack", plain, "--arch", "sm_87", "--kernels", KERNEL, "-o", third)
    assert verify(third).digest == verify(second).digest


def test_a_signature_does_not_outlive_packing_unless_a_key_is_given(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key = tmp_path / "release"
    public = generate_key(key)
    signed = plain_bundle(tmp_path / "net.edgekit", sign_key=key)
    options = ("--arch", "sm_87", "--kernels", KERNEL, "-o")
    done = edgekit("kernels", "pack", signed, *options, tmp_path / "unsigned.edgekit")
    assert "is signed" in done.stderr and "--sign KEY signs it" in done.stderr
    with pytest.raises(SignatureError, match="is not signed"):
        Bundle.open(tmp_path / "unsigned.edgekit", public)
    done = edgekit("kernels", "pack", signed, *options, tmp_path / "again.edgekit", "--key", key)
    assert "is signed" not in done.stderr
    assert verify(tmp_path / "again.edgekit", public).key_checked


def test_what_cannot_be_packed_is_told_before_anything_is_written(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed.edgekit"
    unknown = edgekit("kernels", "pack", plain, "--arch", "sm_12", "-o", output, code=2)
    assert "no architecture 'sm_12'" in unknown.stderr and "compile" not in unknown.stderr
    unsigned = edgekit("kernels", "pack", plain, "--arch", "sm_87", "-o", output, "--sign", tmp_path / "no.key", code=9)
    assert "no key at" in unsigned.stderr
    wrong = edgekit("kernels", "pack", plain, "--arch", "sm_87", "--kernels", "raged-decode", "-o", output, code=2)
    assert "did you mean 'ragged-decode'" in wrong.stderr
    assert "exists" in edgekit("kernels", "pack", plain, "--arch", "sm_87", "-o", plain, code=10).stderr
    assert "no bundle" in edgekit("kernels", "pack", tmp_path / "no", "--arch", "sm_87", "-o", output, code=9).stderr
    assert not output.exists()
