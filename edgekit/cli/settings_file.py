"""`--settings FILE`: defaults of a command's options from a TOML file; the command line overrides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import Decorator, option


def settings_option(*, heading: str, help: str) -> Decorator:
    """Keys are option names with _ for -; an unknown one is an error that names the nearest."""
    return option(
        "--settings",
        heading=heading,
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help=help,
    )


def _apply(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Before the other options are read. Values go through their types as if they had been typed."""
    if path is None or context.resilient_parsing:
        return
    from edgekit.tuning.settings import read_settings

    own = ("help", "json_", "quiet", "verbose")
    known = [
        one.name
        for one in context.command.params
        if isinstance(one, click.Option) and one.name and one is not parameter and one.name not in own
    ]
    found: dict[str, Any] = {
        name: value if isinstance(value, bool) else str(value) for name, value in read_settings(path, known).items()
    }
    context.default_map = {**(context.default_map or {}), **found}
