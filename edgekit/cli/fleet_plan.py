"""`edgekit fleet plan`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.options import option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import ms_text, size_text

if TYPE_CHECKING:
    from edgekit.fleet.protocol.agents import PlanOrder
    from edgekit.fleet.protocol.insights import Choice, PlanView


@make_command("edgekit fleet plan pi-7\nedgekit fleet plan pi-7 --replan", name="plan")
@click.argument("device")
@option("--replan", heading="Plan", is_flag=True, help="Tell it the best plan now, without waiting for a margin.")
@reach_options
def plan(out: Output, device: str, replan: bool, **settings: Any) -> None:
    """How DEVICE should run its bundle, by its own link and its own speed of the last hour, and why.

    The fleet looks at every device again each few minutes; a plan changes where another one is faster by a tenth on the
    usual link and on the slow quartile of it. On the device the coordinator starts from it and re-plans by itself.
    """
    with reached(settings).open() as client:
        view = client.replan(device) if replan else client.plan(device)
    out.emit({"plan": view.model_dump(mode="json")})
    out.table(facts(_facts(view)))
    if view.choices:
        out.line()
        out.table(_choices(view))
    if view.note:
        out.remark(view.note)
    elif not _same(view.order, view.best):
        out.remark(f"next: edgekit fleet plan {view.name} --replan tells it {_said(view.best)}")


def _facts(view: PlanView) -> list[tuple[str, str | Cell]]:
    bundle = "nothing" if view.digest is None else f"{view.bundle}@sha256:{view.digest[:12]}".removeprefix("@")
    rows: list[tuple[str, str | Cell]] = [("device", Cell(view.name, "bold")), ("runs", bundle)]
    if view.profile:
        speed = f", {view.scale:.3g} times as slow as predicted" if view.scale_samples else ""
        rows.append(("machine", f"{view.profile}{speed}"))
    if view.link is not None:
        link = view.link
        usual = f"{link.bandwidth_mbps:.3g} Mbit/s, {link.rtt_ms:.3g} ms, {100 * link.loss:.2g} % lost"
        rows.append(("link", f"{usual} (median of {link.windows} windows)"))
        rows.append(("when slow", f"{link.slow_bandwidth_mbps:.3g} Mbit/s, {link.slow_rtt_ms:.3g} ms (quartiles)"))
    if view.measured_ms is not None:
        rows.append(("measured", f"{ms_text(view.measured_ms)} ms an answer (median)"))
    rows.append(("plan", _said(view.order)))
    if view.order is not None and view.order.why:
        rows.append(("because", view.order.why))
    return rows


def _choices(view: PlanView) -> Table:
    columns = (
        Column("variant", style="cyan"),
        Column("rate", number=True),
        Column("ms", number=True),
        Column("slow ms", number=True),
        Column("sends", number=True),
        Column("drop", number=True),
        Column(""),
    )
    return Table(columns, [_row(one, view) for one in view.choices])


def _row(one: Choice, view: PlanView) -> tuple[str, str, str, str, str, str, str | Cell]:
    best, told = view.best, view.order
    how: str | Cell = one.why
    if told is not None and (told.digest, told.variant, told.rate) == (view.digest, one.variant, one.rate):
        how = Cell("told", "green")
    elif best is not None and (best.variant, best.rate) == (one.variant, one.rate):
        how = Cell("best now", "yellow")
    sends = size_text(one.bytes_sent) if one.bytes_sent else "-"
    rate = str(one.rate + 1) if one.bytes_sent else "-"
    return one.variant, rate, ms_text(one.latency_ms), ms_text(one.slow_ms), sends, f"{one.drop:.2f}", how


def _said(order: PlanOrder | None) -> str:
    """Rates are counted from 1, the finest, as `edgekit plan` does."""
    return "none told" if order is None else f"{order.variant}, rate {order.rate + 1}"


def _same(one: PlanOrder | None, other: PlanOrder | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.digest, one.variant, one.rate) == (other.digest, other.variant, other.rate)
