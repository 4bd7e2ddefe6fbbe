"""`edgekit agent`: enroll, run, status, install."""

from __future__ import annotations

import logging
import os
import shlex
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import TIERS
from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.ending import Ending
from edgekit.cli.options import FiniteRange, file_option, option
from edgekit.cli.output import Cell, Output, facts
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:
    from edgekit.fleet.agent.reached import Reached
    from edgekit.fleet.agent.status import AgentStatus


def default_home() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/edgekit")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgekit" / "agent"


home_option = option(
    "--home",
    heading="Agent",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where it keeps its identity and bundles.  [default: /var/lib/edgekit, or ~/.local/state/edgekit/agent]",
)


@group(
    """
    edgekit agent enroll --fleet https://fleet:8080 --ca fleet.pem --token eki_...
    edgekit agent run
    sudo edgekit agent install
    edgekit agent status
    """,
    name="agent",
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """The daemon on a device or node: it runs what the fleet wants, once that has answered right."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@make_command("edgekit agent enroll --fleet https://fleet:8080 --token eki_...", name="enroll")
@option("--fleet", heading="Fleet", envvar="EDGEKIT_FLEET", required=True, metavar="URL", help="Its address.")
@option(
    "--token",
    heading="Fleet",
    envvar="EDGEKIT_INVITATION",
    required=True,
    metavar="T",
    help="Of `edgekit fleet invite`; else EDGEKIT_INVITATION, which other users do not see in the list of processes.",
)
@file_option("--ca", heading="Fleet", help="The authority of its certificate; without, the one that the token names.")
@option("--name", heading="Agent", metavar="NAME", help="Of this device; the host's without.")
@option("--tier", heading="Agent", type=click.Choice(TIERS), default="device", show_default=True, help="What this is.")
@option("--again", heading="Agent", is_flag=True, help="Give an enrolled folder a new key; its bundles stay.")
@home_option
def enroll(out: Output, token: str, name: str | None, tier: Any, home: Path | None, **settings: Any) -> None:
    """Become a device of the fleet: the key is made here and stays here."""
    _check_installed()
    from edgekit.fleet.agent.enrolment import enroll as enroll_device
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.identity import kept_name

    place = Home((home or default_home()).absolute())
    own = name or socket.gethostname().split(".")[0].lower()
    if name is None and settings["again"]:
        own = kept_name(place) or own
    identity = enroll_device(place, settings["fleet"], token, own, tier, settings["ca"], again=settings["again"])
    out.emit({"device": identity.device, "name": identity.name, "home": str(place.path)})
    out.table(facts([("device", Cell(identity.name, "bold")), ("id", identity.device), ("home", str(place.path))]))
    out.remark(f"next: edgekit agent run{f' --home {shlex.quote(str(home))}' if home else ''}")


@make_command("edgekit agent run\nedgekit agent run --serve 8101", name="run")
@option(
    "--serve",
    heading="Runtime",
    type=click.IntRange(1, 65534),
    metavar="PORT",
    help="Answer requests there (REST; gRPC one above) as `edgekit serve` does; without, applications open `current`.",
)
@file_option("--key", heading="Security", help="Take only bundles that this public key signed.")
@option(
    "--wait",
    heading="Fleet",
    type=FiniteRange(0, 60),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a question to the fleet waits for new orders.",
)
@option(
    "--windows",
    heading="Fleet",
    type=FiniteRange(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How often what was seen is summed up for the fleet; 0: never.",
)
@option(
    "--hear",
    heading="Updates",
    type=FiniteRange(0, 86_400),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="A new bundle with which the fleet cannot be reached so long is left again; 0: never.",
)
@option(
    "--slowest-ms",
    heading="Updates",
    type=FiniteRange(0, min_open=True),
    metavar="F",
    help="Refuse a bundle that takes longer for a golden answer (the median of a part).",
)
@option(
    "--trial",
    heading="Updates",
    type=FiniteRange(0, 86_400, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Refuse a bundle that has not answered all its golden inputs by then.",
)
@home_option
def run(out: Output, home: Path | None, **settings: Any) -> None:
    """Until SIGTERM or Ctrl-C. Without the fleet, what runs goes on running."""
    _check_installed()
    from edgekit.fleet.agent.assembly import AgentOptions, run_agent
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.trial import TrialLimits

    options = AgentOptions(
        serve=settings["serve"],
        key=settings["key"],
        wait_s=settings["wait"],
        trial=TrialLimits(timeout_s=settings["trial"], slowest_ms=settings["slowest_ms"]),
        hear_s=settings["hear"],
        window_s=settings["windows"],
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ending = Ending()
    ending.listen()
    try:
        run_agent(Home((home or default_home()).absolute()), options, out.remark)
    except KeyboardInterrupt:
        out.remark("stopped")
    finally:
        ending.restore()


@make_command("edgekit agent status", name="status")
@home_option
def status(out: Output, home: Path | None) -> None:
    """Who this is, what runs, what waits, and what was refused. Asks nobody."""
    _check_installed()
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.status import describe

    found = describe(Home((home or default_home()).absolute()))
    out.emit(found.to_json())
    out.table(facts(_status_rows(found)))


def _status_rows(found: AgentStatus) -> list[tuple[str, str | Cell]]:
    state, waiting = found.state, found.windows
    dropped = f", {waiting['dropped']} were let go" if waiting["dropped"] else ""
    rows: list[tuple[str, str | Cell]] = [
        ("device", Cell(found.name or "-", "bold")),
        ("fleet", found.fleet or found.trouble),
        ("agent", "runs" if found.is_running else "does not run"),
        *([("reached", _reached(found.reached))] if found.is_running and found.reached else []),
        ("answers", f"{found.bundle} {state.active[:12]}" if state.active else "nothing"),
        ("golden", f"{state.right} of {state.checked} right" if state.checked else "-"),
    ]
    if not state.confirmed or not state.heard:
        rows.append(("on trial", "the fleet has not been reached with it yet" if state.confirmed else "switched to"))
    rows += [("before it", state.previous[:12])] if state.previous else []
    rows += [("kept", ", ".join(one[:12] for one in state.kept))] if state.kept else []
    rows += [("coming", f"{found.coming_bytes / 1e6:.1f} MB are here")] if found.coming_bytes else []
    rows += (
        [("plan", f"{found.plan.variant} at rate {found.plan.rate}: {found.plan.why}")] if found.plan.variant else []
    )
    rows.append(("windows", f"{waiting['waiting']} wait, {waiting['bytes'] / 1e3:.0f} kB{dropped}"))
    rows += [("refused", f"{digest[:12]}: {reason}") for digest, reason in state.refused.items()]
    return rows


def _reached(reached: Reached) -> str:
    since = datetime.fromtimestamp(reached.since, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"not since {since}: {reached.trouble}" if reached.trouble else f"since {since}"


@make_command("sudo edgekit agent install\nedgekit agent install --serve 8101 --print", name="install")
@option("--serve", heading="Runtime", type=click.IntRange(1, 65534), metavar="PORT", help="As of `edgekit agent run`.")
@file_option("--key", heading="Security", help="As of `edgekit agent run`.")
@option("--user", heading="Service", default="edgekit", show_default=True, help="Who it runs as; made if missing.")
@option(
    "--memory-max",
    heading="Service",
    default="80%",
    show_default=True,
    metavar="SIZE",
    help="Of all that the agent starts, as systemd's MemoryMax.",
)
@option("--print", "show", heading="Service", is_flag=True, help="Print the unit, and install nothing.")
@home_option
def install(out: Output, show: bool, home: Path | None, **settings: Any) -> None:
    """A systemd service that starts with the machine, once this device is enrolled."""
    from edgekit.fleet.agent.unit import UnitOptions, install_unit, unit_text

    options = UnitOptions(home=(home or Path("/var/lib/edgekit")).absolute(), **settings)
    if show:
        click.echo(unit_text(options), nl=False)
        return
    for line in install_unit(options):
        out.remark(line)


def _check_installed() -> None:
    try:
        import cryptography
        import httpx
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "httpx", "agent", "the agent") from error
    del cryptography, httpx


for one in (enroll, run, status, install):
    command.add_command(one)
