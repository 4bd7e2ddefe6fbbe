"""`edgekit inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import TIERS
from edgekit.cli.command import command as make_command
from edgekit.cli.ladders import ladders
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.packed_kernels import kernel_table
from edgekit.cli.wording import ms_text, number_text, plain, shape_text, size_text
from edgekit.devices.device import load_device
from edgekit.devices.latency import predict
from edgekit.errors import EdgekitError, OutputError, UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Manifest, Part
    from edgekit.runtimes.cubins.table import CubinTable

GRIDS_SHOWN = 8


@make_command(
    """
    edgekit inspect cats.edgekit
    edgekit inspect cats.edgekit --scales
    edgekit inspect cats.edgekit --report cats.html
    edgekit inspect cats.edgekit --json | jq .manifest.provenance.versions
    """,
    name="inspect",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--scales", is_flag=True, help="Every scale, not only the first ones.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE", help="Write the bundle's HTML report to this file."
)
@click.option("--force", is_flag=True, help="Replace an existing report file.")
def command(out: Output, bundle: Path, scales: bool, report: Path | None, force: bool) -> None:
    """Show what BUNDLE holds: parts, sizes, shapes, scales, history, provenance and signature.

    The bundle is verified first; nothing of it is run.
    """
    from edgekit.bundle import Bundle

    with Bundle.open(bundle) as opened:
        if report is not None:
            _write_report(opened, report, force)
        out.emit(_payload(opened, report))
        if not out.json:
            _show(out, opened, scales)
    if report is not None:
        out.line(f"report: {report}")


def _write_report(bundle: Bundle, path: Path, force: bool) -> None:
    if not bundle.report_html:
        raise UsageError(f"{bundle.path} holds no HTML report", hint="export it again without --no-report")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(bundle.report_html)
    except FileExistsError:
        raise OutputError(f"{path} exists", hint="--force replaces it") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable path") from error


def _payload(bundle: Bundle, report: Path | None) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "size_bytes": bundle.size_bytes,
        "files": bundle.files,
        "signed_by": bundle.signed_by,
        "manifest": plain(bundle.manifest),
        "kernels": None if (table := _kernels(bundle)) is None else plain(table),
        "report": bundle.report,
        "report_file": str(report) if report else None,
    }


def _show(out: Output, bundle: Bundle, scales: bool) -> None:
    manifest = bundle.manifest
    signature = (
        f"claims the key {bundle.signed_by[:16]}... (`edgekit verify --key` checks)" if bundle.signed_by else "none"
    )
    out.table(
        facts(
            [
                ("bundle", f"{bundle.path} ({size_text(bundle.size_bytes)})"),
                ("model", Cell(f"{manifest.name} ({manifest.task})", "bold")),
                ("device", manifest.device),
                *((tier, manifest.tiers[tier]) for tier in TIERS if tier in manifest.tiers),
                ("digest", bundle.digest),
                ("signature", signature),
                ("preprocess", _preprocess(manifest)),
                ("postprocess", _postprocess(manifest)),
            ]
        )
    )
    ways = ladders(manifest) if manifest.codecs else None
    for table in (
        _parts(manifest),
        _variants(manifest),
        ways,
        _tensors(manifest.part()),
        _fallbacks(manifest),
        _grids(manifest, scales),
    ):
        if table is not None:
            out.line()
            out.table(table)
    if len(manifest.grids) > GRIDS_SHOWN and not scales:
        out.remark(f"{len(manifest.grids) - GRIDS_SHOWN} more scales: --scales shows them")
    packed = _kernels(bundle)
    compiled = None if packed is None else kernel_table(packed)
    for table in (*([compiled] if compiled else []), _history(manifest), _provenance(manifest)):
        out.line()
        out.table(table)


def _kernels(bundle: Bundle) -> CubinTable | None:
    from edgekit.runtimes.cubins.table import read_table

    return read_table(bundle)


def _preprocess(manifest: Manifest) -> str:
    step = manifest.preprocess
    if step is None:
        return "none: arrays go in as they are"
    if step.kind == "text":
        return f"text: {step.tokenizer}, at most {step.max_length} tokens"
    return (
        f"image: {step.mode}, shorter side to {step.resize} ({step.interpolation}), crop {step.crop}, "
        f"(x - {_triple(step.mean)}) / {_triple(step.std)}, {step.layout}"
    )


def _triple(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _postprocess(manifest: Manifest) -> str:
    step = manifest.postprocess
    if step is None:
        return "none: outputs come as they are"
    return f"{step.kind} of {step.output}" + (f", {len(step.labels)} labels" if step.labels else "")


def _parts(manifest: Manifest) -> Table:
    columns = (
        Column("part", style="cyan"),
        Column("format"),
        Column("precision"),
        Column("tier"),
        Column("size", number=True),
        Column("file"),
        Column("sha256"),
    )
    rows: list[list[str | Cell]] = []
    for part in manifest.parts:
        rows.append(
            [part.name, part.format, part.precision, part.tier, size_text(part.size_bytes), part.file, part.sha256[:12]]
        )
        rows += [["", "", "", "", size_text(file.size_bytes), file.file, file.sha256[:12]] for file in part.companions]
    rows += [
        [_role(manifest, file.file), "", "", "", size_text(file.size_bytes), file.file, file.sha256[:12]]
        for file in manifest.assets
    ]
    return Table(columns, rows, "Parts")


def _role(manifest: Manifest, file: str) -> str:
    """What an asset is for."""
    codec = next((codec.name for codec in manifest.codecs if codec.tables == file), None)
    if codec is not None:
        return f"tables of {codec}"
    part = next((golden.part for golden in manifest.golden if golden.file == file), None)
    if part is not None:
        return f"golden answers of {part}"
    is_tokenizer = manifest.preprocess is not None and getattr(manifest.preprocess, "tokenizer", None) == file
    return "tokenizer" if is_tokenizer else "asset"


def _variants(manifest: Manifest) -> Table | None:
    """Those beside the whole model that run on the device alone."""
    local = [one for one in manifest.variants if not one.codecs]
    if len(local) < 2:
        return None
    columns = (
        Column("variant", style="cyan"),
        Column("parts"),
        Column("points lost", number=True),
        Column("device ms", number=True),
    )
    rows = []
    for index, one in enumerate(local):
        parts = [manifest.part(name) for name in one.parts]
        lost = "-" if index == 0 else f"{one.drop:.2f}"
        rows.append((one.name, ", ".join(one.parts), lost, ms_text(_predicted_ms(manifest, parts))))
    return Table(columns, rows, "Variants on the device")


def _predicted_ms(manifest: Manifest, parts: list[Part]) -> float | None:
    """None for a device whose profile is not here."""
    try:
        device = load_device(manifest.device)
        return sum(predict(part.segments, device, part.format).latency_ms for part in parts)
    except EdgekitError:
        return None


def _tensors(part: Part) -> Table:
    rows = [
        (way, entry.name, entry.dtype, shape_text(entry.shape))
        for way, entries in (("in", part.inputs), ("out", part.outputs))
        for entry in entries
    ]
    columns = (Column(""), Column("tensor", style="cyan"), Column("dtype"), Column("shape"))
    return Table(columns, rows, "Inputs and outputs")


def _fallbacks(manifest: Manifest) -> Table | None:
    if not manifest.fallbacks:
        return None
    columns = (Column("layer", style="cyan"), Column("kept in"), Column("why"))
    rows = [(line.layer, line.precision, line.why) for line in manifest.fallbacks]
    return Table(columns, rows, "Layers in higher precision")


def _grids(manifest: Manifest, every: bool) -> Table | None:
    if not manifest.grids:
        return None
    columns = (
        Column("scale of", style="cyan"),
        Column("kind"),
        Column("bits", number=True),
        Column("channels", number=True),
        Column("from", number=True),
        Column("to", number=True),
        Column("zero", number=True),
    )
    rows = [
        (
            grid.name,
            grid.kind,
            str(grid.bits),
            str(grid.channels),
            f"{grid.scale_min:.3g}",
            f"{grid.scale_max:.3g}",
            str(grid.zero_point),
        )
        for grid in (manifest.grids if every else manifest.grids[:GRIDS_SHOWN])
    ]
    return Table(columns, rows, f"Scales ({len(manifest.grids)})")


def _history(manifest: Manifest) -> Table:
    """With the weights of the torch model after each pass; a quantized one keeps them in float until it is lowered."""
    columns = (Column("pass", style="cyan"), Column("what it did"), Column("torch MB", number=True))
    rows = [(line.name, line.detail, number_text(line.size_bytes / 1e6, 2)) for line in manifest.history]
    return Table(columns, rows, "History")


def _provenance(manifest: Manifest) -> Table:
    origin = manifest.provenance
    recipe = ", ".join(f"{key}={value}" for key, value in origin.recipe.items() if value is not None)
    rows: list[tuple[str, str | Cell]] = [
        ("source", f"{origin.source} ({origin.source_kind})"),
        ("source sha256", origin.source_sha256),
        ("edgekit", origin.edgekit),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
        ("recipe", recipe),
    ]
    return facts(rows, "Provenance")
