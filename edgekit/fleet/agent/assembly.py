"""An agent put together, from its folder and its options, and run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgekit.bundle.manifest import Tier
from edgekit.errors import BundleError, OutputError, UsageError
from edgekit.fleet.agent.collector import Collector
from edgekit.fleet.agent.daemon import Daemon
from edgekit.fleet.agent.errand import FrugalClient
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import facts, load_identity
from edgekit.fleet.agent.machine import read_machine
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.agent.runtime import NodeRuntime, NoRuntime, Runtime
from edgekit.fleet.agent.trial import TrialLimits, try_bundle
from edgekit.fleet.agent.update import HEAR_S, Updater

logger = logging.getLogger("edgekit")


@dataclass(frozen=True)
class AgentOptions:
    """`serve`: the port of a node of its own (gRPC one above), None where applications open `current`. `key`: whose
    bundles are taken. `wait_s`: how long a question to the fleet waits. `hear_s`: see `Updater`. `window_s`: of what
    is told of; 0 for telling nothing."""

    serve: int | None = None
    key: Path | None = None
    wait_s: float = 25.0
    trial: TrialLimits = TrialLimits()
    hear_s: float = HEAR_S
    window_s: float = 60.0


def run_agent(home: Home, options: AgentOptions, say: Callable[[str], None] = lambda text: None) -> None:
    """Until it is interrupted. What counts answers even where who this is cannot be read, or the disk not be written
    to. Raises UsageError where this folder was never enrolled, ConflictError where an agent runs here already."""
    tier = _tier(home, say)
    with contextlib.suppress(OutputError):  # folders that an earlier version did not have
        home.make()
    with home.hold():
        runtime: Runtime = NoRuntime()
        if options.serve is not None:
            runtime = NodeRuntime(home.path / "served", tier, options.serve, options.serve + 1)
        updater = Updater(
            home, tier, runtime, partial(try_bundle, key=options.key, limits=options.trial), hear_s=options.hear_s
        )
        machine = read_machine()
        about = facts(tier, machine.profile, machine.formats).model_copy(update={"memory_bytes": machine.memory_bytes})
        ring = Ring(home)
        collector = Collector(home, updater, ring, runtime.url, options.window_s)
        daemon = Daemon(home, partial(FrugalClient, home), updater, about, ring, options.wait_s)
        try:
            collector.start()
            daemon.run()
        finally:
            collector.close()
            runtime.close()


def _tier(home: Home, say: Callable[[str], None]) -> Tier:
    """By the identity; where that is damaged, by what was last known: what runs must go on running."""
    try:
        identity = load_identity(home)
    except UsageError as error:
        if not (home.path / "identity.json").exists():
            raise
        logger.error("%s: what counts runs, and the fleet is not asked", error.message)
        return _last_tier(home)
    say(f"{identity.name} follows {identity.fleet}")
    return identity.tier


def _last_tier(home: Home) -> Tier:
    try:
        return home.read_state().tier
    except BundleError:
        return "device"
