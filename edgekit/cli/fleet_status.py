"""`edgekit fleet status`"""

from __future__ import annotations

from typing import Any

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.fleet_rollouts import show_rollout
from edgekit.cli.output import Column, Output, Table, facts


@make_command("edgekit fleet status\nedgekit fleet status --json", name="status")
@reach_options
def status(out: Output, **settings: Any) -> None:
    """Devices, groups and rollouts at a glance."""
    where = reached(settings)
    with where.open() as client:
        overview, page = client.overview(), client.rollouts(limit=5)
    going = [one for one in page.items if one.ended_at is None] or list(page.items[:1])
    out.emit({"overview": overview.model_dump(mode="json"), "rollouts": [x.model_dump(mode="json") for x in going]})
    out.table(
        facts(
            [
                ("fleet", f"{where.url}, edgekit {overview.version}"),
                ("devices", f"{overview.devices}, of which {overview.connected} are connected"),
                ("bundles", str(overview.bundles)),
            ]
        )
    )
    if overview.groups:
        out.line()
        columns = (Column("group", style="cyan"), Column("devices", number=True), Column("connected", number=True))
        out.table(Table(columns, [(one.name, str(one.devices), str(one.connected)) for one in overview.groups]))
    for view in going:
        out.line()
        show_rollout(out.table, view)
