"""`edgekit fleet simulate`"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.fleet_devices import labels_of
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.fleet_rollouts import share_of
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from edgekit.fleet.simulation.outcome import Outcome
    from edgekit.fleet.simulation.scene import Bad

MOST_DEVICES = 100_000
FAULTS = ("wrong", "slow", "crash")


@make_command(
    """
    edgekit fleet simulate --devices 1000 --seconds 120 --label site=sim
    edgekit fleet simulate --devices 10000 --seconds 180 --json
    edgekit fleet simulate --devices 1000 --bad-bundle wrong --offline 5%
    edgekit fleet simulate --devices 200 --backlog 512 --wait 25
    """,
    name="simulate",
)
@option(
    "--devices",
    heading="Devices",
    type=click.IntRange(1, MOST_DEVICES),
    default=100,
    show_default=True,
    metavar="N",
    help="How many enrol.",
)
@option("--label", "labels", heading="Devices", multiple=True, metavar="K=V", help="That they get; repeatable.")
@option("--prefix", heading="Devices", metavar="NAME", help="Of their names; a new one each time without.")
@option("--running", heading="Devices", default="", metavar="BUNDLE", help="That all of them run already.")
@option(
    "--seconds",
    heading="Devices",
    type=FiniteRange(1, 86_400),
    default=120.0,
    show_default=True,
    metavar="N",
    help="How long, once all are enrolled.",
)
@option("--seed", heading="Devices", type=click.IntRange(0), default=0, show_default=True, help="Of what is sampled.")
@option(
    "--interval", heading="Asking", type=FiniteRange(0.1, 86_400), metavar="SECONDS", help="As the fleet says without."
)
@option(
    "--wait",
    heading="Asking",
    type=FiniteRange(0, 60),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="A call is held so long for new orders.",
)
@option(
    "--offline", heading="Asking", default="0%", show_default=True, metavar="SHARE", help="Of the time, in stretches."
)
@option(
    "--backlog",
    heading="Asking",
    type=click.IntRange(0, 2_880),
    default=0,
    show_default=True,
    metavar="N",
    help="Windows that each has kept from before.",
)
@option(
    "--rate",
    heading="Answers",
    type=FiniteRange(0, 100_000),
    default=1.0,
    show_default=True,
    metavar="N",
    help="Requests a second on each device.",
)
@option(
    "--latency",
    heading="Answers",
    type=FiniteRange(0.01, 60_000),
    default=40.0,
    show_default=True,
    metavar="MS",
    help="The median of the devices' medians.",
)
@option("--errors", heading="Answers", default="0.05%", show_default=True, metavar="SHARE", help="Of requests.")
@option("--agreement", heading="Answers", default="98.5%", show_default=True, metavar="SHARE", help="With the cloud.")
@option(
    "--drift",
    heading="Answers",
    type=FiniteRange(-10, 10),
    default=0.0,
    show_default=True,
    metavar="N",
    help="Of the inputs' mean in an hour, as a share of it.",
)
@option(
    "--update",
    heading="Updates",
    type=FiniteRange(0, 3_600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one takes, about.",
)
@option(
    "--bad-bundle",
    heading="Updates",
    metavar="wrong|slow|crash[:SHARE][@DIGEST]",
    help="Every bundle but the first (or the one whose digest begins so) does this, on that share of the devices.",
)
@reach_options
def simulate(out: Output, devices: int, **settings: Any) -> None:
    """Let many simulated devices enrol and speak the real protocol with a fleet, from one process.

    They download what is new once for all of them and verify it, then play the update. Ctrl-C ends the run early, and
    tells what was counted. The devices stay in the fleet
    behind the end, silent; `edgekit fleet devices remove` removes them.
    """
    try:
        from edgekit.fleet.protocol.people import InvitationOrder
        from edgekit.fleet.simulation.actor import Part
        from edgekit.fleet.simulation.behaviour import Behaviour
        from edgekit.fleet.simulation.scene import Simulation, play
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "httptools", "fleet", "simulating devices") from error
    where = reached(settings)
    prefix = settings["prefix"] or f"sim-{secrets.token_hex(2)}"
    labels, bad = labels_of(settings["labels"]), _bad(settings["bad_bundle"])
    offline, errors, agreement = (_share(settings[name]) for name in ("offline", "errors", "agreement"))
    with where.open() as client:
        running = client.bundle(settings["running"]).digest if settings["running"] else ""
        invitation = client.invite(InvitationOrder(labels=labels, uses=devices))
    simulation = Simulation(
        url=where.url,
        invitation=invitation.token,
        devices=devices,
        seconds=settings["seconds"],
        prefix=prefix,
        seed=settings["seed"],
        part=Part(
            interval_s=settings["interval"],
            wait_s=settings["wait"],
            update_s=settings["update"],
            offline=offline,
        ),
        behaviour=Behaviour(
            rate=settings["rate"],
            latency_ms=settings["latency"],
            errors=errors,
            agreement=agreement,
            drift=settings["drift"],
        ),
        bad=bad,
        running=running,
        backlog=settings["backlog"],
        authority=where.ca,
    )
    with out.working() as progress:
        outcome = play(simulation, progress)
    out.emit({"simulation": outcome.summary()})
    _show(out, outcome)


def _share(text: str) -> float:
    """Zero too. Raises UsageError."""
    return 0.0 if text in ("0", "0%") else share_of(text)


def _bad(text: str | None) -> Bad | None:
    """`wrong`, `slow:0.5`, `crash:10%@0123abcd`. Raises UsageError."""
    from edgekit.fleet.simulation.scene import Bad

    if text is None:
        return None
    front = text.partition("@")[2].removeprefix("sha256:")
    fault, colon, share = text.partition("@")[0].partition(":")
    for name in ("wrong", "slow", "crash"):
        if fault == name:
            return Bad(name, front, share_of(share) if colon else 1.0)
    raise UsageError(f"bad bundle {text!r:.80}, allowed {', '.join(FAULTS)}", hint="--bad-bundle slow:50%")


def _show(out: Output, outcome: Outcome) -> None:
    found = outcome.summary()
    latency = found["latency_ms"]
    failed = sum(outcome.errors.values())
    rows: list[tuple[str, str | Cell]] = [
        ("devices", f"{outcome.devices:,}, enrolled in {outcome.enrol_s:.1f} s"),
        ("calls", f"{outcome.syncs:,} in {outcome.seconds:.0f} s, {found['syncs_per_s']:,} a second"),
        ("windows", f"{outcome.windows:,} stored, {found['windows_per_s']:,} a second, {outcome.lost_windows:,} lost"),
        ("latency", ", ".join(f"{name} {value:g} ms" for name, value in latency.items())),
        ("errors", Cell(f"{failed:,}", "red" if failed else "green")),
        ("bytes", f"{outcome.bytes_sent:,} sent, {outcome.bytes_received:,} received"),
    ]
    if outcome.bad_ran:
        rows.append(("bad bundle", f"{outcome.bad_ran} devices ever ran it, {outcome.returned} of them do no more"))
    out.table(facts(rows))
    for title, counts in (("error", found["errors"]), ("failed update", found["failed_updates"])):
        if counts:
            out.line()
            out.table(
                Table(
                    (Column(title), Column("times", number=True)),
                    [(text, f"{count:,}") for text, count in counts.items()],
                )
            )
    if outcome.ran:
        out.line()
        columns = (Column("bundle", style="cyan"), Column("ever ran", number=True), Column("run now", number=True))
        out.table(
            Table(
                columns,
                [(one[:12], str(held["ever_ran"]), str(held["running"])) for one, held in found["bundles"].items()],
            )
        )
