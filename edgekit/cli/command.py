"""What every command shares: --json, -q and -v, examples below its help, and the nearest name to a wrong one."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import CompletionItem

from edgekit.cli.output import Output
from edgekit.cli.streams import printable
from edgekit.errors import UnknownNameError

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class GroupedOption(click.Option):
    """An option that `--help` lists under `heading`."""

    def __init__(self, *arguments: Any, heading: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.heading = heading


class NameType(click.ParamType):
    """One of `choices`, with the nearest one for a wrong name; or any text, for which a shell suggests some."""

    name = "name"

    def __init__(self, kind: str, choices: Callable[[], Iterable[str]], *, closed: bool = True) -> None:
        self.kind, self.choices, self.closed = kind, choices, closed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if self.closed and value not in set(self.choices()):
            raise UnknownNameError(self.kind, str(value), self.choices())
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in self.choices() if name.startswith(incomplete)]
        return found if self.closed else [*found, CompletionItem(incomplete, type="file")]


class Exampled:
    """Mixed into click's classes: `examples` are printed as they stand."""

    examples: str
    help: str | None
    short_help: str | None

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole first sentence, which a list folds; click cuts it at `limit`."""
        if self.short_help:
            return self.short_help
        paragraph = " ".join(inspect.cleandoc(self.help or "").split("\n\n")[0].split())
        return re.split(r"(?<=\.) ", paragraph, maxsplit=1)[0]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self.examples.splitlines():
                formatter.write(" " * formatter.current_indent + line + "\n" if line else "\n")


class Command(Exampled, click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by heading, those without one last."""
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections[getattr(param, "heading", "Options")].append(record)
        common = sections.pop("Options", [])
        for heading, records in [*sections.items(), ("Options", common)]:
            with formatter.section(heading):
                formatter.write_dl(records)


class NamedGroup(Exampled, click.Group):
    """A group whose unknown commands are errors that name the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UnknownNameError("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def command(examples: str, name: str | None = None, short: str = "") -> Callable[[Callable[..., None]], Command]:
    """A function `run(out, **parameters)` as a command; its docstring is the help. `short`: its line in the list of a
    group, where the first sentence of the help is too long for it."""

    def wrap(function: Callable[..., None]) -> Command:
        made = click.command(name, cls=Command, context_settings=CONTEXT, short_help=short or None)(
            with_output(function)
        )
        made.examples = textwrap.dedent(examples).strip()
        _name_numbers(made)
        return made

    return wrap


def _name_numbers(made: click.Command) -> None:
    """A number without a name of its own is shown as N, or F where it may be broken; never as its type."""
    for param in made.params:
        if isinstance(param, click.Option) and param.metavar is None and not (param.is_flag or param.count):
            if isinstance(param.type, click.types.IntParamType):
                param.metavar = "N"
            elif isinstance(param.type, click.types.FloatParamType):
                param.metavar = "F"


def group(
    examples: str, name: str | None = None, kind: type[NamedGroup] = NamedGroup
) -> Callable[[Callable[..., None]], NamedGroup]:
    """Like `command`, for a group that does something without a command of its own."""

    def wrap(function: Callable[..., None]) -> NamedGroup:
        made = click.group(name, cls=kind, context_settings=CONTEXT, invoke_without_command=True)(with_output(function))
        made.examples = textwrap.dedent(examples).strip()
        _name_numbers(made)
        return made

    return wrap


def with_output(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the common options, and hands the function an Output instead of them."""

    @click.option("--json", "json_", is_flag=True, help="One JSON object on stdout; everything else on stderr.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
    @click.option("-v", "--verbose", is_flag=True, help="Logs and tracebacks on stderr.")
    @functools.wraps(function)
    def run(json_: bool, quiet: bool, verbose: bool, **parameters: Any) -> None:
        context = click.get_current_context()
        above = context.obj if isinstance(context.obj, Output) else Output()
        context.obj = Output(json_ or above.json, quiet or above.quiet, verbose or above.verbose)
        with _logs(context.obj):
            function(context.obj, **parameters)

    return run


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _logs(out: Output) -> Iterator[None]:
    """On stderr: edgekit's warnings and other libraries' errors; with -v a level more, with -q errors only."""
    own_level = logging.INFO if out.verbose else logging.ERROR if out.quiet else logging.WARNING
    other_level = logging.WARNING if out.verbose else logging.ERROR

    def wanted(record: logging.LogRecord) -> bool:
        is_own = record.name.split(".")[0] == "edgekit"
        return record.levelno >= (own_level if is_own else other_level)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(wanted)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO if out.verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default" if out.verbose else "ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
