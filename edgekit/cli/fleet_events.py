"""`edgekit fleet events`"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.options import option
from edgekit.cli.output import Column, Output, Table


@make_command("edgekit fleet events\nedgekit fleet events --subject pi-7 --limit 20", name="events")
@option("--subject", heading="Events", default="", metavar="NAME", help="Of that device, bundle, group or rollout.")
@option("--after", heading="Events", metavar="ID", help="Read on behind that one.")
@option("--limit", heading="Events", type=click.IntRange(1, 500), default=50, show_default=True, help="At most.")
@reach_options
def events(out: Output, subject: str, after: str | None, limit: int, **settings: Any) -> None:
    """Who did what, the newest first."""
    with reached(settings).open() as client:
        page = client.events(after, limit, subject)
    out.emit({"events": [one.model_dump(mode="json") for one in page.items], "next": page.next})
    columns = (Column("id", number=True), Column("when"), Column("who", style="cyan"), Column("what"), Column("whom"))
    rows = [
        (
            str(one.id),
            datetime.fromtimestamp(one.at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
            one.actor,
            one.action,
            one.subject[:40],
        )
        for one in page.items
    ]
    out.table(Table(columns, rows))
    if page.next is not None:
        out.remark(f"more: --after {page.next}")
