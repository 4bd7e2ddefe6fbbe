"""The table of compiled kernels: what it refuses, and which architecture runs what."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.errors import BundleError
from edgekit.runtimes.cubins import TABLE, CubinTable, read_table
from edgekit.runtimes.cubins.table import runs_on

from .conftest import plain_bundle


def table_of(bundle: Bundle) -> CubinTable:
    found = read_table(bundle)
    assert found is not None
    return found


def rewritten(bundle: Bundle, table: bytes, path: Path, left_out: str = "") -> Bundle:
    """`bundle` with another table, sealed again as a careless or hostile tool would."""
    kept = [one for one in bundle.manifest.assets if one.file not in (TABLE, left_out)]
    part = bundle.manifest.parts[0]
    files: dict[str, Path | bytes] = {f"assets/{one.file}": bundle.asset_path(one.file) for one in kept}
    files |= {f"parts/{one.file}": bundle.part_path().with_name(one.file) for one in (part, *part.companions)}
    manifest = bundle.manifest.model_copy(update={"assets": (*kept, describe_file(TABLE, table))})
    write_bundle(path, manifest, {**files, f"assets/{TABLE}": table}, bundle.report, bundle.report_html)
    return Bundle.open(path)


def test_a_bundle_without_kernels_has_no_table(tmp_path: Path) -> None:
    with Bundle.open(plain_bundle(tmp_path / "net.edgekit")) as bundle:
        assert read_table(bundle) is None


def test_each_row_says_what_a_launch_and_a_reader_need(packed: Bundle) -> None:
    table = table_of(packed)
    assert table.compiler.startswith("triton ") and table.scratch_pointers == 2
    assert table.architectures == ("sm_87", "sm_80", "sm_100")
    for one in table.kernels:
        assert one.symbol == f"_{one.entry}" and one.spilled_bytes == 0 and 0 < one.registers <= 255
        assert one.arguments[0].name in ("symbols", "points") and one.file.endswith(f".{one.arch}.cubin")
    assert table.to_bytes() == packed.asset_path(TABLE).read_bytes()


def test_a_table_that_does_not_fit_its_assets_is_refused(packed: Bundle, tmp_path: Path) -> None:
    table = table_of(packed)
    first = table.kernels[0]
    moved = table.model_copy(update={"kernels": (first.model_copy(update={"sha256": "0" * 64}), *table.kernels[1:])})
    with pytest.raises(BundleError, match=f"names {first.file} with sha256 0000000000000000..., which has sha256"):
        read_table(rewritten(packed, moved.to_bytes(), tmp_path / "moved.edgekit"))
    with pytest.raises(BundleError, match="is not among the assets"):
        read_table(rewritten(packed, table.to_bytes(), tmp_path / "gone.edgekit", left_out=first.file))


def test_newer_foreign_and_nonsensical_tables_are_told_apart(packed: Bundle, tmp_path: Path) -> None:
    text = table_of(packed).to_bytes()
    cases = {
        "schema version 2, this edgekit reads up to 1": text.replace(b'"schema_version": 1', b'"schema_version": 2'),
        "arch": text.replace(b'"arch": "sm_87"', b'"arch": "gfx90a"'),
        "type": text.replace(b'"type": "i32"', b'"type": "tensor"'),
        "arguments of ragged-dequantize repeat": text.replace(b'"name": "starts"', b'"name": "kept"'),
        "Invalid JSON": b"[",
        "Extra inputs": text.replace(b'"compiler"', b'"extra": 1, "compiler"'),
    }
    for number, (message, content) in enumerate(cases.items()):
        with pytest.raises(BundleError, match=message):
            read_table(rewritten(packed, content, tmp_path / f"{number}.edgekit"))


@pytest.mark.parametrize(
    ("arch", "device", "expected"),
    [
        ("sm_87", "sm_87", True),
        ("sm_80", "sm_86", True),
        ("sm_80", "sm_89", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_87", False),
        ("sm_87", "sm_89", False),
        ("sm_80", "sm_90", False),
        ("sm_90", "sm_90", True),
        ("sm_100", "sm_103", False),
        ("sm_100", "sm_100", True),
    ],
)
def test_code_runs_on_its_own_architecture_and_on_later_ones_of_servers(arch: str, device: str, expected: bool) -> None:
    assert runs_on(arch, device) is expected
