"""`--settings FILE`: defaults of a command's options from a TOML file; the command line overrides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import Decorator, option
from edgekit.errors import UsageError

_AS_WRITTEN = "options of `edgekit serve`, with _ for -, as `edgekit tune --out` writes them"


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
    known = {
        one.name: one
        for one in context.command.params
        if isinstance(one, click.Option) and one.name and one is not parameter and one.name not in own
    }
    found = {name: _typed(path, context, known[name], value) for name, value in read_settings(path, known).items()}
    context.default_map = {**(context.default_map or {}), **found}


def _typed(path: Path, context: click.Context, option: click.Option, value: Any) -> str | bool:
    """As it would have been typed. Raises UsageError, which names the file, for what the option does not take."""
    if isinstance(value, bool) != option.is_flag or not isinstance(value, bool | int | float | str):
        wanted = "true or false" if option.is_flag else "a number or a text"
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise UsageError(f"{path}: {option.name} is {shown:.60}, allowed {wanted}", hint=_AS_WRITTEN)
    typed = value if isinstance(value, bool) else str(value)
    try:
        option.type_cast_value(context, typed)
    except click.BadParameter as error:
        raise UsageError(f"{path}: {option.name}: {error.message.rstrip('.')}", hint=_AS_WRITTEN) from error
    except UsageError as error:
        raise UsageError(f"{path}: {option.name}: {error.message}", hint=error.hint) from error
    return typed
