"""Which kernels a command means, and where they run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from edgekit.cli.command import NameType
from edgekit.errors import MissingExtraError, UsageError
from edgekit.registry import KERNELS

if TYPE_CHECKING:
    from edgekit.runtimes.kernels.base import Kernel

NAMES = click.argument("names", nargs=-1, type=NameType("kernel", lambda: KERNELS), metavar="[NAME]...")


def need_triton(*, interpreted: bool) -> str:
    """Where kernels run: on the GPU, or in the interpreter, which has to be asked for before Triton is imported.
    Raises MissingExtraError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "kernels", "GPU kernels") from error
    if torch.cuda.is_available():
        return "GPU"
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("triton", "kernels", "GPU kernels") from error
    if not interpreted and os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("TRITON_INTERPRET=1 is set, and interpreted kernels are not compiled", hint="unset it")
    return "interpreter"


def architectures(text: str) -> list[str]:
    """Separated by commas, each once. Raises UsageError for one that is not known, or where nothing stands between two
    commas. Triton is there by now."""
    from edgekit.runtimes.kernels.compilation import check_architecture

    found = list(dict.fromkeys(one.strip() for one in text.split(",")))
    for one in found:
        check_architecture(one)
    return found


def chosen(names: Iterable[str]) -> list[Kernel]:
    return [KERNELS.load(name) for name in names or KERNELS]
