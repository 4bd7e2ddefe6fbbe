"""How a command ends that does not succeed: message, hint and exit code, for people or as JSON."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from edgekit import errors
from edgekit.cli.streams import paint, printable, stdout_may_be_full
from edgekit.errors import INTERRUPTED, EdgekitError, OutputError, PlanError, QualityError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ending(action: Callable[[], object], arguments: list[str]) -> int:
    """Runs `action`; its exit code. What went wrong is told on stderr, and on stdout where --json was asked."""
    as_json, verbose = "--json" in arguments, bool({"-v", "--verbose"} & set(arguments))
    try:
        code = action()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _tell(_translated(error), as_json, verbose)
    except EdgekitError as error:
        return _tell(error, as_json, verbose)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click raises its own from the interrupt
        hint = "; ".join(getattr(cause, "__notes__", ()))
        _report("Interrupted", "interrupted: nothing half-written is left", hint, INTERRUPTED, as_json, {})
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _tell(_no_room(error), as_json, verbose)
        _trace(verbose)
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "run again with -v for the traceback, and report it with the command line"
        _report(type(error).__name__, message, hint, EdgekitError.exit_code, as_json, {})
        return EdgekitError.exit_code


def exit_code_rows() -> list[tuple[int, str, str]]:
    """(code, error class, meaning); the meanings are those that errors.py states at its top."""
    stated = re.findall(r"^[ │├└─]*(\w+) +(\d+) +(.+)$", errors.__doc__ or "", re.MULTILINE)
    meanings = {name: meaning for name, _, meaning in stated}
    own = {"success": "done", "EdgekitError": "anything else", "interrupted": "Ctrl-C: nothing half-written is left"}
    return [(code, name, own.get(name) or meanings.get(name, "")) for code, name in sorted(errors.exit_codes().items())]


def _no_room(error: OSError) -> OutputError:
    """Where nobody nearer has told of it, as of the standard output."""
    where = f" {error.filename}" if error.filename else ""
    return OutputError(f"cannot write{where}: {error.strerror}", hint="free some space, or write elsewhere")


def _translated(error: click.ClickException) -> UsageError:
    """click's own complaints in our form."""
    if isinstance(error, click.NoSuchOption):
        if before := _stands_before(error):
            return UsageError(f"no such option {error.option_name} of `{error.ctx.info_name}`", hint=before)  # type: ignore[union-attr]
        near = f"did you mean {' or '.join(sorted(error.possibilities))}? " if error.possibilities else ""
        return UsageError(f"no such option {error.option_name}", hint=near + _see_help(error))
    message = error.format_message()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=_see_help(error))


def _stands_before(error: click.NoSuchOption) -> str:
    """Where the option is one of a command above: how to write it."""
    below, above = error.ctx, error.ctx.parent if error.ctx else None
    while below is not None and above is not None:
        if any(error.option_name in option.opts for option in above.command.params):
            return f"it stands before that: {above.command_path} {error.option_name} ... {below.info_name}"
        below, above = above, above.parent
    return ""


def _see_help(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"`{context.command_path if context else 'edgekit'} --help` shows what there is"


def _tell(error: EdgekitError, as_json: bool, verbose: bool) -> int:
    _trace(verbose)
    details: dict[str, Any] = {}
    if isinstance(error, QualityError):
        details["layers"] = [{"name": name, "sqnr_db": sqnr} for name, sqnr in error.layers]
    if isinstance(error, PlanError) and error.found is not None:
        details["search"] = error.found.to_json()
    notes = [*getattr(error, "__notes__", ())]
    message = "\n".join([error.message, *(f"  {note}" for note in notes)])
    _report(type(error).__name__, message, error.hint, error.exit_code, as_json, details)
    if isinstance(error, QualityError) and error.layers:
        from edgekit.cli.output import Column, Table, draw

        rows = [(name, f"{sqnr:.1f}") for name, sqnr in error.layers]
        draw(Table((Column("worst layers"), Column("SQNR dB", number=True)), rows), sys.stderr)
    return error.exit_code


def report(error: EdgekitError, message: str) -> None:
    """An error that does not end the command, on stderr."""
    _report(type(error).__name__, message, error.hint, error.exit_code, False, {})


def _report(kind: str, message: str, hint: str, exit_code: int, as_json: bool, details: dict[str, Any]) -> None:
    click.echo(f"{paint('error:', 'bold red', sys.stderr)} {printable(message)}", err=True, color=True)
    if hint:
        click.echo(f"{paint('hint:', 'cyan', sys.stderr)} {printable(hint)}", err=True, color=True)
    if as_json:
        from edgekit.cli.output import SCHEMA_VERSION, dump

        failure = {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code, **details}
        with stdout_may_be_full():
            click.echo(dump({"schema_version": SCHEMA_VERSION, "error": failure}))


def _trace(verbose: bool) -> None:
    if verbose or os.environ.get("EDGEKIT_DEBUG"):
        traceback.print_exc()
