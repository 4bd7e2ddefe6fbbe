"""`edgekit agent`: enroll, run, status."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import click

from edgekit.bundle.manifest import TIERS
from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.options import FiniteRange, file_option, option
from edgekit.cli.output import Cell, Output, facts
from edgekit.errors import MissingExtraError


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
    edgekit agent status
    """,
    name="agent",
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """The daemon on a device or node: it runs what the fleet wants, once that has answered right."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@make_command("edgekit agent enroll --fleet https://fleet:8080 --ca fleet.pem --token eki_...", name="enroll")
@option("--fleet", heading="Fleet", envvar="EDGEKIT_FLEET", required=True, metavar="URL", help="Its address.")
@option("--token", heading="Fleet", required=True, metavar="T", help="Of `edgekit fleet invite`.")
@file_option("--ca", heading="Fleet", help="The authority of its certificate.")
@option("--name", heading="Agent", metavar="NAME", help="Of this device; the host's without.")
@option("--tier", heading="Agent", type=click.Choice(TIERS), default="device", show_default=True, help="What this is.")
@home_option
def enroll(out: Output, token: str, name: str | None, tier: Any, home: Path | None, **settings: Any) -> None:
    """Become a device of the fleet: the key is made here and stays here."""
    _check_installed()
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.identity import enroll as enroll_device

    place = Home(home or default_home())
    own = name or socket.gethostname().split(".")[0].lower()
    identity = enroll_device(place, settings["fleet"], token, own, tier, settings["ca"])
    out.emit({"device": identity.device, "name": identity.name, "home": str(place.path)})
    out.table(facts([("device", Cell(identity.name, "bold")), ("id", identity.device), ("home", str(place.path))]))
    out.remark("next: edgekit agent run")


@make_command("edgekit agent run\nedgekit agent run --serve 8101", name="run")
@option(
    "--serve",
    heading="Runtime",
    type=click.IntRange(0, 65534),
    metavar="PORT",
    help="Answer requests there (REST; gRPC one above) as `edgekit serve` does; without, applications open `current`.",
)
@file_option("--key", heading="Security", help="Take only bundles that this public key signed.")
@option(
    "--wait",
    heading="Agent",
    type=FiniteRange(0, 60),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a question to the fleet waits for new orders.",
)
@home_option
def run(out: Output, serve: int | None, key: Path | None, wait: float, home: Path | None) -> None:
    """Until SIGTERM or Ctrl-C. Without the fleet, what runs goes on running."""
    _check_installed()
    from edgekit.fleet.agent.daemon import Daemon
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.identity import connect, facts, load_identity
    from edgekit.fleet.agent.runtime import NodeRuntime, NoRuntime
    from edgekit.fleet.agent.update import Updater

    place = Home(home or default_home())
    identity = load_identity(place)
    place.make()
    client = connect(place, identity)
    runtime = NoRuntime() if serve is None else NodeRuntime(place.current, identity.tier, serve, serve + 1)
    updater = Updater(place, identity.tier, runtime, key)
    daemon = Daemon(client, updater, facts(identity.tier), wait)
    updater.report = daemon.tell
    logging.getLogger("httpx").setLevel(logging.WARNING)
    out.remark(f"{identity.name} follows {identity.fleet}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        daemon.run()
    except KeyboardInterrupt:
        out.remark("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
        runtime.close()
        client.close()


@make_command("edgekit agent status", name="status")
@home_option
def status(out: Output, home: Path | None) -> None:
    """Who this is, what runs, and what was refused. Asks nobody."""
    _check_installed()
    from edgekit.fleet.agent.home import Home
    from edgekit.fleet.agent.identity import load_identity

    place = Home(home or default_home())
    identity, state = load_identity(place), place.read_state()
    out.emit({"name": identity.name, "fleet": identity.fleet, "state": state.model_dump(mode="json")})
    rows: list[tuple[str, str | Cell]] = [
        ("device", Cell(identity.name, "bold")),
        ("fleet", identity.fleet),
        ("runs", state.digest or "-"),
        ("golden", f"{state.right} of {state.checked} right" if state.checked else "-"),
    ]
    rows += [("refused", f"{digest[:12]}: {reason}") for digest, reason in state.refused.items()]
    out.table(facts(rows))


def _check_installed() -> None:
    try:
        import cryptography
        import httpx
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "httpx", "agent", "the agent") from error
    del cryptography, httpx


for one in (enroll, run, status):
    command.add_command(one)
