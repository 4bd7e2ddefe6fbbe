"""`edgekit fleet rollout`, `pause`, `resume`, `rollback`"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_options import Reached, reach_options, reached
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.errors import RemoteError, RolloutError, UnreachableError, UsageError

if TYPE_CHECKING:
    from edgekit.fleet.client import FleetClient
    from edgekit.fleet.protocol.rollouts import GuardView, RolloutView

POLL_S = 1.0
HALTS = "edgekit fleet status tells how, edgekit fleet pause {} halts it"
PATIENCE_S = 60.0  # without an answer of the fleet, which may be starting anew
STYLES = {"complete": "green", "rolled-back": "red", "rolling-back": "red", "aborted": "red", "paused": "yellow"}


def share_of(text: str) -> float:
    """`5%` or `0.05`. Raises UsageError."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise UsageError(f"share {text!r}, allowed above 0 up to 100%", hint="5%, 25%, 100%")
    return found


@make_command(
    """
    edgekit fleet rollout cats@sha256:0123456789ab --group pi
    edgekit fleet rollout cats --group pi --canary 5% --guard "agreement>=0.97,p95<=80ms,errors<=0.1%"
    edgekit fleet rollout cats --group pi --steps 1%,10%,50%,100% --soak 600 --no-wait
    """,
    name="rollout",
)
@click.argument("bundle")
@option("--group", heading="Whom", required=True, metavar="NAME", help="The devices.")
@option("--canary", heading="Whom", metavar="SHARE", help="Of the first step; then five times as many, then all.")
@option("--steps", heading="Whom", metavar="SHARES", help="Every step by itself: 1%,10%,100%.")
@option("--guard", "guards", heading="Conditions", default="", metavar="TERMS", help="What must hold, or it goes back.")
@option(
    "--soak",
    heading="Conditions",
    type=FiniteRange(0, 2_592_000),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a step must hold before the next.",
)
@option(
    "--window",
    heading="Conditions",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Devices under way at once; 0 for no bound.",
)
@option(
    "--max-wrong",
    heading="Conditions",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Devices that may refuse it, fall back or fall silent on the way before it goes back.",
)
@option(
    "--timeout",
    heading="Conditions",
    type=FiniteRange(1, 2_592_000),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="A device that has not answered by then is lost; what cannot be judged by then pauses it.",
)
@option("--wait/--no-wait", heading="Conditions", default=True, show_default=True, help="Watch it to its end.")
@reach_options
def rollout(out: Output, bundle: str, group: str, **settings: Any) -> None:
    """Take a bundle to a group, step by step. It goes back by itself where a guard breaks, and pauses where one cannot
    be judged. Exit code 17 where it did not come to its end.

    Servers of the group move first and keep the old bundle until no device runs it.

    Guards: agreement, errors, degraded, late, golden (shares: 0.97, 0.1%), p50, p90, p95, p99 (80ms), energy (mJ an
    answer), temperature (75C); with x as unit (p95<=1.2x) against the devices that still run what they ran.
    """
    from pydantic import ValidationError

    from edgekit.fleet.protocol.rollouts import RolloutOrder

    where = reached(settings)
    steps = _steps(settings["canary"], settings["steps"])
    with where.open() as client:
        digest = client.bundle(bundle).digest
        try:
            order = RolloutOrder(
                bundle=digest,
                group=group,
                steps=steps,
                guards=settings["guards"],
                soak_s=settings["soak"],
                window=settings["window"],
                max_wrong=settings["max_wrong"],
                timeout_s=settings["timeout"],
            )
        except ValidationError as error:
            raise UsageError(str(error.errors()[0]["msg"]), hint="edgekit fleet rollout --help") from None
        view = client.roll_out(order)
        if settings["wait"]:
            view = _watch(out, client, view)
    _show(out, view)
    if settings["wait"] and view.state != "complete":
        hint = "edgekit fleet resume, or edgekit fleet rollback" if view.state == "paused" else "edgekit fleet events"
        raise RolloutError(f"the rollout is {view.state}: {view.reason}", hint=hint)


def _steps(canary: str | None, steps: str | None) -> tuple[float, ...]:
    if steps is not None:
        if canary is not None:
            raise UsageError("--canary and --steps", hint="give one of them")
        return tuple(share_of(word.strip()) for word in steps.split(","))
    first = share_of(canary) if canary is not None else 0.05
    return tuple(sorted({first, min(1.0, 5 * first), 1.0}))


def _watch(out: Output, client: FleetClient, view: RolloutView) -> RolloutView:
    """To its end, or where it pauses. Raises RemoteError where the fleet is not heard for a while."""
    from edgekit.fleet.protocol.rollouts import ENDED

    heard_at = time.monotonic()
    try:
        with out.working() as progress:
            while view.state not in ENDED and view.state != "paused":
                progress(_step_text(view), *_done_of(view))
                time.sleep(POLL_S)
                try:
                    view, heard_at = client.rollout(view.id), time.monotonic()
                except UnreachableError:
                    if time.monotonic() - heard_at > PATIENCE_S:
                        raise
    except KeyboardInterrupt:
        out.remark(f"the rollout goes on: {HALTS.format(view.id[:8])}")
        raise
    except RemoteError as error:
        error.hint = f"the rollout goes on without being watched: {HALTS.format(view.id[:8])}"
        raise
    return view


def _step_text(view: RolloutView) -> str:
    return "rolling back" if view.state == "rolling-back" else view.stages[view.stage]


def _done_of(view: RolloutView) -> tuple[int, int]:
    """(devices that are where they should be, of how many)."""
    tally = view.tally
    if view.state == "rolling-back":
        told = tally.asked + tally.right + tally.wrong + tally.lost + tally.reverting + tally.reverted
        return tally.reverted, told
    return tally.right, sum(tally.model_dump().values()) - tally.left


def _turning(name: str, verb: str, help: str) -> click.Command:
    @make_command(f"edgekit fleet {name}\nedgekit fleet {name} 1a2b3c4d", name=name)
    @click.argument("key", metavar="[ROLLOUT]", default="latest")
    @reach_options
    def turn(out: Output, key: str, **settings: Any) -> None:
        where: Reached = reached(settings)
        with where.open() as client:
            view = client.turn_rollout(key, verb)
        _show(out, view)

    turn.help = help
    return turn


pause = _turning("pause", "pause", "Ask no further device; the latest rollout without ROLLOUT.")
resume = _turning("resume", "resume", "Go on with a paused rollout.")
rollback = _turning("rollback", "rollback", "Give every device that was asked back what it ran before.")


def _show(out: Output, view: RolloutView) -> None:
    out.emit({"rollout": view.model_dump(mode="json")})
    show_rollout(out.table, view)


def show_rollout(table: Callable[[Table], None], view: RolloutView) -> None:
    rows: list[tuple[str, str | Cell]] = [
        ("rollout", Cell(view.id[:8], "bold")),
        ("bundle", f"{view.name}@sha256:{view.bundle[:12]}"),
        ("group", view.group),
        ("state", Cell(view.state, STYLES.get(view.state, ""))),
    ]
    if view.reason:
        rows.append(("because" if view.ended_at or view.state != "running" else "now", view.reason))
    rows.append(("devices", ", ".join(f"{n:,} {name}" for name, n in view.tally.model_dump().items() if n) or "none"))
    table(facts(rows))
    table(Table((Column("step", number=True), Column("who"), Column("")), list(_steps_of(view))))
    if view.guards:
        columns = (Column("guard"), Column("value", number=True), Column("holds"), Column("samples", number=True))
        table(Table(columns, [_guard_row(one) for one in view.guards]))


def _steps_of(view: RolloutView) -> Iterator[tuple[str, str, str | Cell]]:
    for index, text in enumerate(view.stages):
        if index < view.stage or view.state == "complete":
            how: str | Cell = Cell("done", "green")
        elif index > view.stage:
            how = "" if view.ended_at is None else "not begun"
        else:
            how = Cell("here" if view.ended_at is None else "ended here", STYLES.get(view.state, "bold"))
        yield str(index + 1), text, how


def _guard_row(one: GuardView) -> tuple[str, str, str | Cell, str]:
    from edgekit.fleet.rollouts.guards import parse_guards, shown

    value = "-" if one.value is None else shown(parse_guards(one.text)[0].metric, one.value)
    holds: dict[bool | None, str | Cell] = {
        True: Cell("yes", "green"),
        False: Cell("no", "red"),
        None: one.why or "not yet told",
    }
    return one.text, value, holds[one.holds], f"{one.samples:,}"
