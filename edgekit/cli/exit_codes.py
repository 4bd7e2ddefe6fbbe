"""`edgekit exit-codes`"""

from __future__ import annotations

from edgekit.cli.command import command as make_command
from edgekit.cli.failure import exit_code_rows
from edgekit.cli.output import Column, Output, Table


@make_command(
    """
    edgekit exit-codes
    edgekit exit-codes --json
    """,
    name="exit-codes",
)
def command(out: Output) -> None:
    """List the exit codes and what they mean. They stay what they are from version to version."""
    rows = exit_code_rows()
    out.emit({"exit_codes": [{"code": code, "kind": kind, "meaning": meaning} for code, kind, meaning in rows]})
    columns = (Column("code", number=True), Column("kind", style="cyan"), Column("meaning"))
    out.table(Table(columns, [(str(code), kind, meaning) for code, kind, meaning in rows]))
