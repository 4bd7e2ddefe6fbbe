"""`edgekit fleet insights`"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.options import option
from edgekit.cli.output import Column, Output, Table

if TYPE_CHECKING:
    from edgekit.fleet.protocol.insights import Finding

KINDS = ("suspect", "drift")


@make_command(
    """
    edgekit fleet insights
    edgekit fleet insights --kind drift
    edgekit fleet insights --device pi-7 --json
    """,
    name="insights",
)
@option("--kind", heading="Which", type=click.Choice(KINDS), help="Of this kind alone.")
@option("--device", heading="Which", default="", metavar="NAME", help="About one device.")
@option("--after", heading="Which", metavar="N", help="Read on behind that many.")
@option("--limit", heading="Which", type=click.IntRange(1, 500), default=50, show_default=True, help="At most.")
@reach_options
def insights(out: Output, kind: Any, device: str, after: str | None, limit: int, **settings: Any) -> None:
    """Devices that stand out, the worst first: suspects are unlike their peers, which do the same work on the same kind
    of machine; drift is inputs or confidence unlike they were with the same bundle at first."""
    with reached(settings).open() as client:
        page = client.insights(kind, device, after, limit)
        if device and not page.items:
            client.device(device)  # nobody of that name is an error, not a device that does not stand out
    out.emit({"insights": [one.model_dump(mode="json") for one in page.items], "next": page.next})
    if not page.items:
        out.line("nobody stands out")
        return
    out.table(insights_table(page.items))
    if page.next is not None:
        out.remark(f"more: --after {page.next}")


def insights_table(found: Sequence[Finding]) -> Table:
    columns = (
        Column("device", style="cyan"),
        Column("what"),
        Column("score", number=True),
        Column("since", number=True),
        Column("evidence"),
    )
    return Table(columns, [_row(one) for one in found])


def _row(one: Finding) -> tuple[str, str, str, str, str]:
    return one.name, f"{one.kind}: {one.metric}", f"{one.score:.3g}", ago(time.time() - one.since), one.text


def ago(seconds: float) -> str:
    """12 min, 3 h, 2 d."""
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
