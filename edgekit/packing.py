"""The winner becomes a Bundle: its parts, a deterministic manifest, and beside it a report of what was measured."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import edgekit
from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.loop import Loop
from edgekit.bundle.manifest import (
    FallbackLine,
    Grid,
    HistoryLine,
    Manifest,
    Part,
    PartFile,
    Provenance,
    TensorEntry,
    Variant,
)
from edgekit.costs import peak_activation_bytes
from edgekit.devices.device import load_device
from edgekit.golden import GoldenOutcome, gather
from edgekit.model import Model
from edgekit.quantization import Quantization
from edgekit.recipe import Recipe
from edgekit.report.html import render
from edgekit.report.model import EvaluationReport
from edgekit.reporting import Evidence, build_report
from edgekit.selection import Built, Packed
from edgekit.split_outcome import SplitOutcome

PACKAGES = (
    "torch", "torchao", "onnx", "onnxscript", "onnxruntime", "executorch", "litert-torch", "ai-edge-litert",
    "ai-edge-quantizer", "transformers", "numpy",
)  # fmt: skip


def pack(
    recipe: Recipe, output: Path, evidence: Evidence, split: SplitOutcome = SplitOutcome()
) -> tuple[Bundle, dict[str, Any]]:
    """Writes the bundle and reads it back, verified; the second value is what `export --json` prints.

    `split`: the parts, codecs and variants beside the whole model on the device. Raises OutputError with nothing left
    behind.
    """
    local = [Packed("model", evidence.winner)]
    twin = evidence.twin
    if recipe.include_float and twin is not None and twin.artifact is not None and twin is not evidence.winner:
        local.append(Packed("float", twin))
    golden = gather([*local, *split.packed], evidence.original.preprocess)
    manifest = build_manifest(recipe, evidence.device.name, evidence.original, local, split, golden)
    report = build_report(evidence, split.rows, split.information, split.notes)
    write_bundle(
        output,
        manifest,
        part_files([*local, *split.packed], evidence.original) | _assets(split.tables | golden.assets),
        report.to_json(),
        render(report) if recipe.report else "",
        sign_key=Path(recipe.sign) if recipe.sign else None,
        force=recipe.force,
        as_directory=recipe.directory,
    )
    return Bundle.open(output), summary(output, manifest, report)


def summary(output: Path, manifest: Manifest, report: EvaluationReport) -> dict[str, Any]:
    """The object of `export --json`, without its schema version."""
    plain = report.to_json()
    latency = plain["latency_ms"] or {}
    return {
        "bundle": str(output),
        "parts": [
            {
                "name": part.name,
                "file": part.file,
                "format": part.format,
                "tier": part.tier,
                "precision": part.precision,
                "size_bytes": part.size_bytes,
                "sha256": part.sha256,
            }
            for part in manifest.parts
        ],
        "quality": plain["quality"],
        "latency_ms": {
            "host": latency.get("host"),
            "float_host": latency.get("float_host"),
            "threads": latency.get("threads"),
            "isa": latency.get("isa"),
            "predicted": latency.get("predicted"),
        },
        "candidates": plain["candidates"],
        "fallbacks": plain["fallbacks"],
        "seconds": report.seconds["total"],
        "peak_memory_bytes": report.peak_memory_bytes,
    }


def build_manifest(
    recipe: Recipe,
    device: str,
    original: Model,
    local: Sequence[Packed],
    split: SplitOutcome = SplitOutcome(),
    golden: GoldenOutcome = GoldenOutcome(),
) -> Manifest:
    """`local`: the whole model on the device, the default first."""
    winner = local[0].built
    record = winner.model.quantization
    return Manifest(
        name=original.name,
        task=original.task,
        device=device,
        tiers=_tiers(recipe),
        parts=(*(_part(one, original.loop) for one in local), *(_part(one) for one in split.packed)),
        variants=(*(Variant(name=_variant_name(one.built), parts=(one.name,)) for one in local), *split.variants),
        codecs=split.codecs,
        preprocess=original.preprocess,
        postprocess=original.postprocess,
        assets=(
            *(() if original.tokenizer is None else (_file(original.tokenizer),)),
            *(describe_file(name, content) for name, content in sorted((split.tables | golden.assets).items())),
        ),
        golden=golden.entries,
        fallbacks=tuple(FallbackLine(layer=f.layer, precision=f.precision, why=f.why) for f in winner.fallbacks),
        grids=_grids(record) if record is not None else (),
        history=tuple(HistoryLine(name=e.name, detail=e.detail, size_bytes=e.size_bytes) for e in winner.model.history),
        provenance=Provenance(
            edgekit=edgekit.__version__,
            versions=installed_versions(),
            source_kind=original.source.kind,
            source=original.source.reference,
            source_sha256=original.source.digest,
            recipe=recipe.provenance(),
        ),
    )


def part_files(packed: Sequence[Packed], original: Model) -> dict[str, Path | bytes]:
    """Path in the bundle -> the file that goes there."""
    files: dict[str, Path | bytes] = {}
    for one in packed:
        artifact = one.built.artifact
        assert artifact is not None
        for path in (artifact.path, *artifact.companions):
            files[f"parts/{path.name}"] = path
    if original.tokenizer is not None:
        files[f"assets/{original.tokenizer.name}"] = original.tokenizer
    return files


def _assets(contents: dict[str, bytes]) -> dict[str, Path | bytes]:
    return {f"assets/{name}": content for name, content in contents.items()}


def _tiers(recipe: Recipe) -> dict[Literal["edge", "cloud"], str]:
    """The profiles' own names: a user's path means nothing on another machine."""
    named: dict[Literal["edge", "cloud"], str] = {}
    if recipe.edge is not None:
        named["edge"] = load_device(recipe.edge).name
    if recipe.cloud is not None:
        named["cloud"] = load_device(recipe.cloud).name
    return named


def installed_versions() -> dict[str, str]:
    """Of each package that had a hand in the artifact."""
    found = {"python": sys.version.split()[0], "edgekit": edgekit.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _variant_name(built: Built) -> str:
    return f"{built.candidate.format}-{built.candidate.precision}"


def _part(packed: Packed, loop: Loop | None = None) -> Part:
    """`loop`: of the whole model; a stage of it is no step."""
    built = packed.built
    artifact = built.artifact
    assert artifact is not None
    file = _file(artifact.path)
    inputs, outputs = artifact.interface(built.model)
    return Part(
        file=file.file,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        name=packed.name,
        tier=packed.tier,
        format=artifact.format,
        precision=artifact.precision,
        companions=tuple(_file(path) for path in artifact.companions),
        inputs=tuple(TensorEntry.of(spec) for spec in inputs),
        outputs=tuple(TensorEntry.of(spec) for spec in outputs),
        segments=built.segments,
        peak_activation_bytes=peak_activation_bytes(built.model),
        notes=artifact.notes,
        loop=loop,
    )


def _file(path: Path) -> PartFile:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return PartFile(file=path.name, size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def _grids(record: Quantization) -> tuple[Grid, ...]:
    weights = [
        Grid(
            name=name,
            kind="weight",
            bits=grid.bits,
            channels=grid.scale.numel(),
            scale_min=float(grid.scale.min()),
            scale_max=float(grid.scale.max()),
            zero_point=int(grid.zero_point.flatten()[0]) if grid.zero_point.numel() else 0,
        )
        for name, grid in record.weights.items()
    ]
    activations = [
        Grid(
            name=name,
            kind="activation",
            bits=(grid.quant_max - grid.quant_min).bit_length(),
            channels=1,
            scale_min=grid.scale,
            scale_max=grid.scale,
            zero_point=grid.zero_point,
        )
        for name, grid in record.activations.items()
    ]
    return (*weights, *activations)
