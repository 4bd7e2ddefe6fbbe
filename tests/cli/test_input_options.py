from __future__ import annotations

import math
from typing import Any

import click
from click.testing import CliRunner

from edgekit.cli.input_options import input_options, iteration_of, media_of


def settings(*words: str) -> dict[str, Any]:
    given: dict[str, Any] = {}

    @click.command
    @input_options
    def command(**found: Any) -> None:
        given.update(found)

    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    return {**given, "max_batch": 7, "queue": 9}


def test_as_many_slots_as_a_batch_has_rows_and_no_budget_unless_asked() -> None:
    options = iteration_of(settings())
    assert (options.slots, options.queue, options.max_steps) == (7, 9, 1024)
    assert math.isinf(options.tokens_per_minute)
    assert not media_of(settings()).draft


def test_what_is_asked_is_taken() -> None:
    asked = settings(
        "--max-steps", "5", "--tokens-per-minute", "60", "--decode-threads", "3", "--max-pixels", "10", "--draft"
    )
    options, media = iteration_of(asked), media_of(asked)
    assert (options.max_steps, options.tokens_per_minute) == (5, 60.0)
    assert (media.threads, media.max_pixels, media.pixels_at_once, media.draft) == (3, 10, 10, True)
