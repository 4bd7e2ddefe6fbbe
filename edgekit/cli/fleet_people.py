"""`edgekit fleet people`"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.fleet_options import order_of, reach_options, reached
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts


@group(
    """
    edgekit fleet people
    edgekit fleet people add ada operator --days 90
    edgekit fleet people remove ada
    """,
    name="people",
)
@reach_options
@click.pass_context
def people(context: click.Context, /, out: Output, **settings: Any) -> None:
    """List who may do what."""
    context.meta["fleet"] = reached(settings)
    if context.invoked_subcommand is not None:
        return
    with context.meta["fleet"].open() as client:
        found = client.people()
    out.emit({"people": [one.model_dump(mode="json") for one in found]})
    columns = (Column("name", style="cyan"), Column("role"), Column("until"))
    out.table(Table(columns, [(one.name, one.role, day_of(one.ends_at)) for one in found]))


def day_of(at: float | None) -> str:
    """ "-" for what has no end."""
    return "-" if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


@make_command("edgekit fleet people add ada operator", name="add")
@click.argument("name")
@click.argument("role", type=click.Choice(("viewer", "operator", "admin")))
@option(
    "--days", heading="Token", type=FiniteRange(0.01, 3650), metavar="F", help="How long it counts; for ever without."
)
@click.pass_context
def add(context: click.Context, out: Output, name: str, role: Any, days: float | None) -> None:
    """Viewers read; operators also push, roll out and invite; admins also manage people."""
    from edgekit.fleet.protocol.people import PersonOrder

    valid_s = None if days is None else 86_400 * days
    order = order_of(PersonOrder, name=name, role=role, valid_s=valid_s)
    with context.meta["fleet"].open() as client:
        made = client.add_person(order)
    out.emit({"person": made.model_dump(mode="json")})
    out.table(
        facts([("name", made.name), ("role", made.role), ("token", Cell(f"{made.token}  (told once)", "yellow"))])
    )


@make_command("edgekit fleet people remove ada", name="remove")
@click.argument("name")
@click.pass_context
def remove(context: click.Context, out: Output, name: str) -> None:
    """The token counts no more."""
    with context.meta["fleet"].open() as client:
        client.remove_person(name)
    out.emit({"removed": name})
    out.line(f"removed {name}")


for one in (add, remove):
    people.add_command(one)
