"""`edgekit doctor`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import plain, size_text

if TYPE_CHECKING:
    from edgekit.devices.doctor import Diagnosis, FormatState, Package

YES, NO = Cell("yes", "green"), Cell("no", "yellow")


@make_command(
    """
    edgekit doctor
    edgekit doctor --json | jq -r '.formats[] | select(.can_run) | .format'
    """,
    name="doctor",
)
def command(out: Output) -> None:
    """Show what is installed, what can run here, what is missing, and the exact command that adds it."""
    from edgekit.devices.doctor import diagnose

    diagnosis = diagnose()
    out.emit(plain(diagnosis))
    if not out.json:
        _show(out, diagnosis)


def _show(out: Output, diagnosis: Diagnosis) -> None:
    for table in (_machine(diagnosis), _formats(diagnosis), _packages(diagnosis), _tools(diagnosis)):
        out.table(table)
        out.line()
    commands = _commands(diagnosis)
    if commands:
        out.line("to add what is missing:", "bold")
        for text in commands:
            out.line(f"  {text}")
    else:
        out.line("nothing is missing", "green")


def _machine(diagnosis: Diagnosis) -> Table:
    machine = diagnosis.machine
    clock = f" at {machine.clock_ghz:.2f} GHz" if machine.clock_ghz else ""
    return facts(
        [
            ("edgekit", f"{diagnosis.edgekit} on Python {diagnosis.python}"),
            ("machine", f"{machine.cpu}, {machine.arch}, {machine.system}"),
            ("cores", f"{machine.cores}{clock}, {size_text(machine.memory_bytes)}"),
            ("ISA", " ".join(machine.isa)),
        ]
    )


def _formats(diagnosis: Diagnosis) -> Table:
    columns = (Column("format", style="cyan"), Column("runs here"), Column("exports here"), Column("what adds it"))
    rows = [
        (state.format, YES if state.can_run else NO, _exports(state), "; ".join(_adds(state)))
        for state in diagnosis.formats
    ]
    return Table(columns, rows, "Formats")


def _exports(state: FormatState) -> Cell:
    """Some formats are only run: they have no exporter, and no command adds one."""
    if state.can_export:
        return YES
    return NO if state.export_command else Cell("-", "dim")


def _adds(state: FormatState) -> list[str]:
    return list(dict.fromkeys(text for text in (state.run_command, state.export_command) if text))


def _packages(diagnosis: Diagnosis) -> Table:
    columns = (
        Column("package", style="cyan"),
        Column("installed"),
        Column("wanted"),
        Column("extra"),
        Column("state"),
    )
    rows = [
        (package.name, package.version or "-", package.wanted or "any", package.extra or "(base)", _state(package))
        for package in diagnosis.packages
    ]
    return Table(columns, rows, "Packages")


def _state(package: Package) -> Cell:
    if package.version is None:
        return Cell("missing", "yellow")
    return Cell("ok", "green") if package.fits else Cell("another version", "red")


def _tools(diagnosis: Diagnosis) -> Table:
    columns = (Column("tool", style="cyan"), Column("where"), Column("what for"))
    rows = [(tool.name, tool.path or Cell("missing", "yellow"), tool.purpose) for tool in diagnosis.tools]
    return Table(columns, rows, "Tools")


def _commands(diagnosis: Diagnosis) -> list[str]:
    """Each command once: for formats, for packages of the wrong version, for tools."""
    found = [text for state in diagnosis.formats for text in _adds(state)]
    found += [
        f'pip install "{package.name}{package.wanted}"'
        for package in diagnosis.packages
        if package.version is not None and not package.fits
    ]
    found += [tool.command for tool in diagnosis.tools if tool.path is None]
    return list(dict.fromkeys(found))
