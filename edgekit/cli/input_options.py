"""Options of `edgekit serve` for what comes as pictures, recordings and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import FiniteRange, option

if TYPE_CHECKING:
    from edgekit.runtimes.server.decoding import MediaOptions
    from edgekit.runtimes.server.iteration import IterationOptions

HEADING = "Inputs"

_OPTIONS = (
    option(
        "--max-steps",
        heading=HEADING,
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        metavar="N",
        help="Tokens of one generated answer at most.",
    ),
    option(
        "--tokens-per-minute",
        heading=HEADING,
        type=FiniteRange(0, min_open=True),
        metavar="F",
        help="That one tenant may have generated.",
    ),
    option(
        "--decode-threads",
        heading=HEADING,
        type=click.IntRange(1, 256),
        default=2,
        show_default=True,
        metavar="N",
        help="For pictures, beside the threads that run models.",
    ),
    option(
        "--max-pixels",
        heading=HEADING,
        type=click.IntRange(1),
        default=32_000_000,
        show_default=True,
        metavar="N",
        help="Of a picture, and of all that are decoded at one time.",
    ),
    option(
        "--draft",
        heading=HEADING,
        is_flag=True,
        help="Decode large JPEGs at three times the size they are resized to: faster, not to the bit what `run` says.",
    ),
)


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for one in reversed(_OPTIONS):
        command = one(command)
    return command


def iteration_of(settings: dict[str, Any]) -> IterationOptions:
    """As many slots as a batch has rows, as many places as the queue has."""
    from edgekit.runtimes.server.iteration import IterationOptions

    return IterationOptions(
        slots=settings["max_batch"],
        queue=settings["queue"],
        max_steps=settings["max_steps"],
        tokens_per_minute=settings["tokens_per_minute"] or math.inf,
    )


def media_of(settings: dict[str, Any]) -> MediaOptions:
    from edgekit.runtimes.server.decoding import MediaOptions

    return MediaOptions(
        threads=settings["decode_threads"],
        max_pixels=settings["max_pixels"],
        pixels_at_once=settings["max_pixels"],
        draft=settings["draft"],
    )
