"""`edgekit fleet status`"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_insights import insights_table
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.fleet_people import day_of
from edgekit.cli.fleet_rollout_list import rollouts_table
from edgekit.cli.fleet_rollouts import show_rollout
from edgekit.cli.output import Cell, Column, Output, Table, facts

if TYPE_CHECKING:
    from edgekit.fleet.protocol.people import GroupView

NEAR_S = 14 * 86_400
SHOWN = 5  # findings, rollouts, and bundles of a group


@make_command("edgekit fleet status\nedgekit fleet status --json", name="status")
@reach_options
def status(out: Output, **settings: Any) -> None:
    """Devices, groups, rollouts, and devices that stand out, at a glance."""
    where = reached(settings)
    with where.open() as client:
        overview, page = client.overview(), client.rollouts(limit=SHOWN)
        insights = client.insights(limit=SHOWN)
    going = [one for one in page.items if one.ended_at is None] or list(page.items[:1])
    ended = [one for one in page.items if one not in going]
    out.emit(
        {
            "overview": overview.model_dump(mode="json"),
            "rollouts": [one.model_dump(mode="json") for one in going],
            "ended": [one.model_dump(mode="json") for one in ended],
            "insights": [one.model_dump(mode="json") for one in insights.items],
        }
    )
    silent = overview.devices - overview.connected
    how = f", {silent:,} of them silent" if silent else ", all connected" if overview.devices else ""
    out.table(
        facts(
            [
                ("fleet", f"{where.url}, edgekit {overview.version}"),
                ("devices", f"{overview.devices:,}{how}"),
                ("bundles", f"{overview.bundles:,}"),
                ("signed", _signed_cell(overview.trust_ends_at)),
            ]
        )
    )
    if overview.groups:
        out.line()
        columns = (
            Column("group", style="cyan"),
            Column("devices", number=True),
            Column("connected", number=True),
            Column("run"),
        )
        out.table(Table(columns, [_group_row(one) for one in overview.groups]))
    for view in going:
        out.line()
        show_rollout(out.table, view)
    if ended:
        out.line()
        out.table(rollouts_table(ended))
    if insights.items:
        out.line()
        out.table(insights_table(insights.items))
        if insights.next is not None:
            out.remark("more: edgekit fleet insights")


def _signed_cell(ends_at: float | None) -> str | Cell:
    """Devices take nothing new from then on."""
    text = "-" if ends_at is None else f"until {day_of(ends_at)}"
    is_near = ends_at is not None and ends_at - time.time() < NEAR_S
    return Cell(f"{text}: edgekit fleet keys expiry", "red") if is_near else text


def _group_row(one: GroupView) -> tuple[str, str, str, str]:
    most = sorted(one.running.items(), key=lambda pair: (-pair[1], pair[0]))
    runs = [f"{count:,} x {digest[:12] or 'nothing'}" for digest, count in most[:SHOWN]]
    more = ["..."] if len(most) > SHOWN else []
    return one.name, f"{one.devices:,}", f"{one.connected:,}", ", ".join(runs + more)
