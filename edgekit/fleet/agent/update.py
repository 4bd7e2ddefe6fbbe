"""From one bundle to the next. What runs is touched last, and only after the new one has answered right.

    fetch   missing files to part/, each moved to blobs/ when its hash is right      nothing that counts is touched
    fill    the free slot                                                            nothing that counts is touched
    verify  the slot as any bundle is verified                                       nothing that counts is touched
    try     golden inputs in a process of its own                                    nothing that counts is touched
    switch  state.json names the other slot, `confirmed` false                       one rename
    check   golden inputs once more, by what now runs; then `confirmed` true         one rename

Whenever the power goes, `state.json` names a slot whose bundle was verified and has answered right. One that was
switched to and not yet confirmed is checked again at the next start, and left for the one before where it fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier
from edgekit.errors import EdgekitError, SessionError
from edgekit.fleet.agent.fetch import fetch, fill
from edgekit.fleet.agent.home import MAX_REMEMBERED, Home, State
from edgekit.fleet.agent.trial import Verdict, try_bundle
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Phase, Slot

logger = logging.getLogger("edgekit")

Trial = Callable[[Path, Tier], Verdict]


class Runtime(Protocol):
    """What answers requests here."""

    def use(self, bundle: Path | None) -> None:
        """Answers with this bundle from now on; None: with nothing. Raises EdgekitError, and then answers as before."""

    def close(self) -> None: ...


class Updater:
    """`report` hears of each phase. One at a time, in one thread."""

    def __init__(
        self,
        home: Home,
        tier: Tier,
        runtime: Runtime,
        key: Path | None = None,
        trial: Trial = try_bundle,
        report: Callable[[Slot], None] = lambda slot: None,
    ) -> None:
        self.home, self.tier = home, tier
        self._runtime, self._key, self._trial = runtime, key, trial
        self.report = report
        self.state = State()
        self.slot = Slot()

    def start(self) -> None:
        """What counts runs; one that is not confirmed is checked first, and left where it fails."""
        self.state = self.home.read_state()
        if self.state.active is not None and not self.state.confirmed:
            self._confirm()
        self.home.point(self.state.active)
        self._runtime.use(None if self.state.active is None else self.home.slot(self.state.active))
        self._tell("idle")

    def follow(self, client: AgentClient, digest: str | None) -> None:
        """Makes it so, or says why not: never raises for what a bundle does, and what ran goes on running. Raises
        RemoteError and OutputError, after which a later call goes on from there."""
        if digest == self.state.digest:
            self._forget_refusals()
            self._tell("idle")
        elif digest is None:
            self._stop()
        elif digest in self.state.refused:
            self._tell("failed", digest, self.state.refused[digest])
        else:
            self._take(client, digest)

    def _take(self, client: AgentClient, digest: str) -> None:
        state = self.state
        if state.previous == digest and self.home.slot(state.free).is_dir():
            logger.info("going back to %s", digest[:16])
        else:
            self._tell("downloading", digest)
            offer, index = fetch(self.home, client, digest)
            if state.previous is not None:
                self._write(state.model_copy(update={"previous": None}))
            fill(self.home, state.free, offer, index)
        slot = self.home.slot(state.free)
        self._tell("verifying", digest)
        try:
            with Bundle.open(slot, self._key) as bundle:
                if bundle.digest != digest:
                    raise SessionError(f"the slot holds {bundle.digest[:16]}")
        except EdgekitError as error:
            self._refuse(digest, error.message)
            return
        self._tell("checking", digest)
        verdict = self._trial(slot, self.tier)
        if not verdict.is_right:
            self._refuse(digest, verdict.reason)
            return
        self._switch(digest, verdict)

    def _switch(self, digest: str, verdict: Verdict) -> None:
        before = self.state
        self._tell("switching", digest)
        self._write(
            before.model_copy(
                update={
                    "active": before.free,
                    "digest": digest,
                    "confirmed": False,
                    "checked": verdict.checked,
                    "right": verdict.right,
                    "previous": before.digest,
                }
            )
        )
        try:
            self.home.point(self.state.active)
            self._runtime.use(self.home.slot(before.free))
        except EdgekitError as error:
            self._fall_back(error.message)
            return
        self._write(self.state.model_copy(update={"confirmed": True, "refused": {}}))
        self._tell("idle")
        self.home.collect()

    def _confirm(self) -> None:
        """After a start in the middle of a switch."""
        assert self.state.active is not None
        verdict = self._trial(self.home.slot(self.state.active), self.tier)
        if verdict.is_right:
            self._write(self.state.model_copy(update={"confirmed": True}))
        else:
            self._fall_back(verdict.reason)

    def _fall_back(self, reason: str) -> None:
        """To what the other slot holds, which ran before."""
        failed, previous = self.state.digest, self.state.previous
        assert failed is not None
        back = self.state.free if previous is not None else None
        self._write(
            self.state.model_copy(
                update={
                    "active": back,
                    "digest": previous,
                    "confirmed": True,
                    "previous": None,
                    "refused": self._with(failed, reason),
                }
            )
        )
        self.home.point(back)
        self._runtime.use(None if back is None else self.home.slot(back))
        self._tell("failed", failed, reason)

    def _refuse(self, digest: str, reason: str) -> None:
        logger.warning("%s is refused: %s", digest[:16], reason)
        self._write(self.state.model_copy(update={"refused": self._with(digest, reason)}))
        self._tell("failed", digest, reason)

    def _with(self, digest: str, reason: str) -> dict[str, str]:
        return dict([*self.state.refused.items(), (digest, reason[:2000])][-MAX_REMEMBERED:])

    def _forget_refusals(self) -> None:
        if self.state.refused:
            self._write(self.state.model_copy(update={"refused": {}}))

    def _stop(self) -> None:
        self._runtime.use(None)
        self._write(self.state.model_copy(update={"active": None, "digest": None, "previous": None, "confirmed": True}))
        self.home.point(None)
        self._tell("idle")

    def _write(self, state: State) -> None:
        self.home.write_state(state)
        self.state = state

    def _tell(self, phase: Phase, candidate: str | None = None, reason: str = "") -> None:
        state = self.state
        self.slot = Slot(
            running=state.digest,
            candidate=candidate,
            phase=phase,
            reason=reason,
            checked=state.checked if state.digest else 0,
            right=state.right if state.digest else 0,
        )
        self.report(self.slot)
