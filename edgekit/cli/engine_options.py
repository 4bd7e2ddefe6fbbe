"""What runs the served parts: their own runtimes, or torch on the processor or a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import option
from edgekit.errors import UsageError
from edgekit.runtimes.torch_engine import PRECISIONS, TorchOptions, open_torch
from edgekit.runtimes.torch_engine.buckets import buckets_up_to

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Part
    from edgekit.runtimes.session import Session

ENGINES = ("runtime", "torch", "ray")
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
# Of the torch engine alone: setting -> option.
OWN = {"device": "--device", "precision": "--precision", "gpu_memory": "--gpu-memory"}


class SizeType(click.ParamType):
    """Bytes, as 512MB, 8GB or 7.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b)", str(value).strip().lower())
        size = float(match[1]) * UNITS.get(match[2], 0) if match else 0
        if size < 1:
            self.fail(f"{value!r}, allowed a size such as 512MB, 8GB or 7.5GiB", param, ctx)
        return int(size)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --engine, --device, --precision and --gpu-memory."""
    for one in reversed(
        (
            option(
                "--engine",
                heading="Engine",
                type=click.Choice(ENGINES),
                default="runtime",
                show_default=True,
                help="Each part's own runtime; torch, for bundles that were exported with --engine torch; ray, for many"
                " nodes on Ray Serve, in which torch runs where --device or --precision is given.",
            ),
            option("--device", heading="Engine", metavar="cpu|cuda[:N]", help="Where torch runs; cpu without."),
            option(
                "--precision",
                heading="Engine",
                type=click.Choice(PRECISIONS),
                help="In what torch runs; fp32 without, as export judged it. int8, w4a16 and fp16 are for GPUs, "
                "slower on the processor.",
            ),
            option(
                "--gpu-memory",
                heading="Engine",
                type=SizeType(),
                metavar="SIZE",
                help="What torch's models may take together; those used least give way. What the GPU has free without.",
            ),
        )
    ):
        function = one(function)
    return function


def torch_options(settings: dict[str, Any]) -> TorchOptions | None:
    """None for another engine. Raises UsageError for an option of torch without it, UnknownNameError."""
    given = {name: settings[name] for name in OWN if settings[name] is not None}
    if settings["engine"] == "runtime" or (settings["engine"] == "ray" and not given):
        for name in given:
            raise UsageError(f"{OWN[name]} without the torch engine", hint="--engine torch, or leave it out")
        return None
    return TorchOptions(
        device=given.get("device", "cpu"),
        precision=given.get("precision", "fp32"),
        memory_bytes=given.get("gpu_memory"),
        threads=settings["threads"],
        buckets=buckets_up_to(settings["max_batch"]),
    )


def opener(options: TorchOptions | None) -> Callable[[Bundle, Part, int | None], Session]:
    """How a node opens its parts; None in their own runtimes."""
    if options is None:
        from edgekit.runtimes.server.model import open_native

        return open_native
    return lambda bundle, part, threads: open_torch(bundle, part, replace(options, threads=threads))


def engine_text(options: TorchOptions | None) -> str:
    return "each part's own runtime" if options is None else f"torch, {options.precision} on {options.device}"
