"""The float program of a part beside it, through the same gate as the part itself."""

from __future__ import annotations

from dataclasses import replace

from edgekit.candidates import Bench
from edgekit.devices.device import Device
from edgekit.errors import QualityError, UsageError
from edgekit.exporters.torch_program import write_torch_program
from edgekit.parity import FLOAT_SQNR_DB, compare, run_session
from edgekit.recipe import Recipe
from edgekit.runtimes.session import SessionOptions, open_session
from edgekit.selection import Built


def add_torch_program(bench: Bench, built: Built) -> Built:
    """`built`, its artifact accompanied by the program of `bench.model`.

    Raises ExportError where there is none, QualityError where torch does not answer with it as before.
    """
    assert built.artifact is not None
    model = bench.model
    bench.progress("torch program: export", 0, 0)
    path = write_torch_program(model, bench.folder)
    options = SessionOptions(threads=bench.threads)
    bench.progress("torch program: compare", 0, 0)
    with open_session("torch", path, model.input_specs, model.output_specs, options) as session:
        step = compare("torch program", bench.reference, run_session(session, bench.samples))
    if step.sqnr_db < FLOAT_SQNR_DB:
        raise QualityError(
            f"the torch program of {model.name}: SQNR {step.sqnr_db:.1f} dB, allowed {FLOAT_SQNR_DB:g}",
            hint="leave --engine torch out: the server runs the part in its own format",
        )
    artifact = replace(built.artifact, companions=(*built.artifact.companions, path))
    return replace(built, artifact=artifact, steps=(*built.steps, step))


def is_server(device: Device) -> bool:
    """Whether torch runs there: a profile that compiles with it says so."""
    return "inductor" in device.formats


def check_engine(recipe: Recipe, device: Device) -> None:
    """Raises UsageError where the torch engine is asked for and no part would run on a server."""
    if recipe.engine == "torch" and recipe.edge is recipe.cloud is None and not is_server(device):
        raise UsageError(
            f"--engine torch, and {device.name} is no server", hint="name one that takes over: --edge x86-server"
        )
