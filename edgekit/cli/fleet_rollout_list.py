"""`edgekit fleet rollouts`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.fleet_people import day_of
from edgekit.cli.fleet_rollouts import STYLES, show_rollout
from edgekit.cli.options import option
from edgekit.cli.output import Cell, Column, Output, Table

if TYPE_CHECKING:
    from edgekit.fleet.protocol.rollouts import RolloutView


@make_command("edgekit fleet rollouts\nedgekit fleet rollouts 6f3a12", name="rollouts")
@click.argument("key", metavar="[ID]", default="")
@option("--after", heading="Rollouts", metavar="ID", help="Read on behind that one.")
@option("--limit", heading="Rollouts", type=click.IntRange(1, 500), default=20, show_default=True, help="At most.")
@reach_options
def rollouts(out: Output, key: str, after: str | None, limit: int, **settings: Any) -> None:
    """Rollouts, the newest first; or one with its steps and guards, by the front of its id."""
    with reached(settings).open() as client:
        if key:
            view = client.rollout(key)
            out.emit(view.model_dump(mode="json"))
            show_rollout(out.table, view)
            return
        page = client.rollouts(after, limit)
    out.emit({"rollouts": [one.model_dump(mode="json") for one in page.items], "next": page.next})
    out.table(rollouts_table(page.items))
    if page.next is not None:
        out.remark(f"more: --after {page.next}")


def rollouts_table(items: Sequence[RolloutView]) -> Table:
    columns = (
        Column("rollout"),
        Column("bundle"),
        Column("group", style="cyan"),
        Column("started"),
        Column("state"),
        Column("because"),
    )
    return Table(columns, [_row(one) for one in items])


def _row(one: RolloutView) -> tuple[str | Cell, ...]:
    bundle, state = f"{one.name}@sha256:{one.bundle[:12]}", Cell(one.state, STYLES.get(one.state, ""))
    return one.id[:8], bundle, one.group, day_of(one.started_at), state, one.reason
