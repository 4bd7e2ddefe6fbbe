"""A Triton model repository from a bundle: a folder for each ONNX part, an ensemble for each plan that runs there."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier, Variant
from edgekit.deploy.served import ServedPart, served_parts
from edgekit.deploy.triton_config import ensemble_config, model_config, order, text_format
from edgekit.errors import DeviceError, OutputError
from edgekit.runtimes.protocol.frames import BUNDLE, MODEL, PLAN, TIER, model_name
from edgekit.runtimes.server import BatchOptions
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX

CONFIG, VERSION, MODEL_FILE = "config.pbtxt", "1", "model.onnx"


@dataclass(frozen=True)
class TritonOptions:
    """`instances` of each model run side by side, on the GPU where `on_gpu`; `threads`: of each, None leaves it to
    Triton."""

    tier: Tier = "cloud"
    batch: BatchOptions = field(default_factory=BatchOptions)
    instances: int = 1
    on_gpu: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class TritonRepository:
    """What was written: names of models and ensembles, and why some plan has no ensemble."""

    path: Path
    models: tuple[str, ...]
    ensembles: tuple[str, ...]
    notes: tuple[str, ...]


def write_repository(
    bundle: Bundle, path: Path, options: TritonOptions = TritonOptions(), *, force: bool = False
) -> TritonRepository:
    """Whole or not at all; with `force` in the place of an earlier repository.

    Raises DeviceError for parts that Triton's ONNX Runtime backend cannot run, OutputError, NodeError.
    """
    parts = served_parts(bundle, options.tier)
    foreign = [f"{part.name} ({part.part.format})" for part in parts if part.part.format != "onnx"]
    if foreign:
        raise DeviceError(
            f"Triton cannot run {', '.join(foreign)}: allowed parts in the format onnx",
            hint="export the bundle with --format onnx for this tier, or serve it with `edgekit serve`",
        )
    _check(path, force)
    ensembles, notes = _ensembles(bundle, parts, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for part in parts:
                _write_model(bundle, part, fresh / part.name, options)
            for name, config in ensembles.items():
                # Triton wants a version's folder even where there is nothing to put into it.
                (fresh / name / VERSION).mkdir(parents=True)
                (fresh / name / CONFIG).write_text(config, encoding="utf-8")
            fresh.chmod(0o755)
            _move_in(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint="choose another place") from error
    return TritonRepository(path, tuple(part.name for part in parts), tuple(ensembles), tuple(notes))


def misfit(before: ServedPart, after: ServedPart) -> str | None:
    """Why what `before` gives cannot be read by `after` as it is; None where it can."""
    if len(before.outputs) != len(after.inputs):
        return f"{before.name} gives {len(before.outputs)} tensors, {after.name} reads {len(after.inputs)}"
    for spec, index in zip(after.inputs, order(before, after), strict=True):
        given = before.outputs[index]
        sizes = zip(given.shape, spec.shape, strict=False)
        fits = len(given.shape) == len(spec.shape) and all(
            one == other or isinstance(one, str) or isinstance(other, str) for one, other in sizes
        )
        if given.dtype != spec.dtype or not fits:
            return (
                f"{before.name} gives {given.name} as {given.dtype} {list(given.shape)}, {after.name} reads"
                f" {spec.dtype} {list(spec.shape)}"
            )
    if before.is_batchable != after.is_batchable:
        return f"of {before.name} and {after.name} only one takes batches"
    return None


def _ensembles(
    bundle: Bundle, parts: tuple[ServedPart, ...], options: TritonOptions
) -> tuple[dict[str, str], list[str]]:
    """Name -> config of each plan whose server parts can follow one another, and why the others cannot."""
    manifest = bundle.manifest
    held = {part.part.name: part for part in parts}
    found: dict[str, str] = {}
    notes: list[str] = []
    for variant in manifest.variants:
        steps = [held[name] for name in variant.parts if name in held]
        if len(steps) < 2:
            continue
        why = _no_ensemble(variant, steps)
        if why is not None:
            notes.append(f"no ensemble for the plan {variant.name}: {why}")
            continue
        name = model_name(manifest.name, variant.name)
        if any(name == part.name for part in parts):
            notes.append(f"no ensemble for the plan {variant.name}: a part bears its name")
            continue
        told = {BUNDLE: bundle.digest, f"{PLAN}.{variant.name}": manifest.plan_digest(variant.name)}
        found[name] = text_format(ensemble_config(name, steps, options.batch, told))
    return found, notes


def _no_ensemble(variant: Variant, steps: list[ServedPart]) -> str | None:
    if variant.exit is not None or variant.exits:
        return "it answers early where it is sure, which an ensemble cannot"
    names = [step.part.name for step in steps]
    if list(variant.parts[variant.parts.index(names[0]) :]) != names:
        return f"of {list(variant.parts)} this tier serves only {names}"
    both = {spec.name for spec in steps[0].inputs} & {spec.name for spec in steps[-1].outputs}
    if both:
        return f"what goes in and what comes out bear one name: {', '.join(sorted(both))}"
    return next((why for one, other in pairwise(steps) if (why := misfit(one, other))), None)


def _write_model(bundle: Bundle, served: ServedPart, folder: Path, options: TritonOptions) -> None:
    manifest, part = bundle.manifest, served.part
    plans = {
        f"{PLAN}.{variant.name}": manifest.plan_digest(variant.name)
        for variant in manifest.variants
        if part.name in variant.parts
    }
    config = model_config(
        served,
        options.batch,
        instances=options.instances,
        on_gpu=options.on_gpu,
        threads=options.threads,
        told={TIER: part.tier, BUNDLE: bundle.digest, MODEL: part.sha256, **plans},
    )
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / CONFIG).write_text(text_format(config), encoding="utf-8")
    source = bundle.part_path(part.name)
    shutil.copyfile(source, version / MODEL_FILE)
    for companion in part.companions:
        # Weights beside the graph, which names them as they are called; torch's program is nothing to Triton.
        if not companion.file.endswith(PROGRAM_SUFFIX):
            shutil.copyfile(source.parent / companion.file, version / companion.file)


def _check(path: Path, force: bool) -> None:
    """Raises OutputError where `path` is taken by anything but, with `force`, a repository."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise OutputError(f"{path} is no folder", hint="choose another --output")
    inside = list(path.iterdir())
    if not inside:
        return
    if not force:
        raise OutputError(f"{path} exists", hint="--force replaces it, or choose another --output")
    strange = [entry.name for entry in inside if not (entry / CONFIG).is_file()]
    if strange:
        raise OutputError(
            f"{path} holds {strange[0]}, which is no model of Triton's", hint="it is never replaced: choose another"
        )


def _move_in(fresh: Path, path: Path) -> None:
    """The former repository steps aside, and comes back where the fresh one cannot take its place."""
    if not path.exists():
        fresh.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        path.rename(aside / path.name)
        try:
            fresh.rename(path)
        except BaseException:
            (aside / path.name).rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
