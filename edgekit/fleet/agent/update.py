"""From one bundle to the next. What runs is touched last, and only after the new one has answered right.

    room    the slot before the one that counts is let go                            one rename, then unnamed folders
    fetch   missing files to part/, each moved to blobs/ when its hash is right      nothing that counts is touched
    fill    a slot of its own                                                        nothing that counts is touched
    try     verified as any bundle is, then golden inputs, in a process of its own   nothing that counts is touched
    switch  state.json names the new slot, `confirmed` and `heard` false             one rename
    run     the runtime answers with it; then `confirmed` true                       one rename
    hear    the fleet is reached with it; then `heard` true                          one rename

Whenever the power goes, `state.json` names a slot whose bundle was verified and has answered right. One that was not
yet confirmed is tried again at the next start, and left for the one before where it fails. One with which the fleet
is not reached within `hear_s` is left too: it may be what broke the network (Mender's step "commit" does the same).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.bundle.manifest import Tier
from edgekit.errors import BundleError, EdgekitError, OutputError, SignatureError
from edgekit.fleet.agent.fetch import ask, fetch
from edgekit.fleet.agent.home import MAX_REMEMBERED, Home, State
from edgekit.fleet.agent.recovery import recover
from edgekit.fleet.agent.runtime import Runtime
from edgekit.fleet.agent.slots import collect, drop, fill, is_whole
from edgekit.fleet.agent.trial import Verdict
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Phase, Slot

logger = logging.getLogger("edgekit")

HEAR_S = 600.0

Trial = Callable[[Path, Tier], Verdict]


class Updater:
    """`report` hears of each phase; `turning` is called before another bundle counts, or none. `hear_s`: how long a new
    bundle may run before the fleet is reached with it, 0 for ever. Safe to use from several threads; an update goes on
    in one."""

    def __init__(
        self,
        home: Home,
        tier: Tier,
        runtime: Runtime,
        trial: Trial,
        report: Callable[[Slot], None] = lambda slot: None,
        hear_s: float = HEAR_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home, self.tier = home, tier
        self._runtime, self._trial = runtime, trial
        self.report = report
        self.turning: Callable[[], object] = lambda: None
        self._hear_s, self._now = hear_s, now
        self._lock = threading.RLock()
        self._switched_at = now()
        self._runs = self._is_tidy = False
        self._proven: str | None = None
        self._damaged: str | None = None  # what the disk damaged last while it ran
        self.state = State(tier=tier)
        self.slot = Slot()
        runtime.on_failing = self.leave

    def start(self) -> None:
        """What counts runs; one that is not confirmed is tried first, one that is damaged is left. Never raises: a
        disk that cannot be written to keeps nothing from answering."""
        with self._lock:
            self.state = recover(self.home).model_copy(update={"tier": self.tier})
            self._note("idle")
            if self.state.active is None or self.state.confirmed:
                self._run()
            else:
                self._confirm(self.state.active)

    def follow(self, client: AgentClient, digest: str | None, kept: Sequence[str] = ()) -> None:
        """Makes it so, or says why not: never raises for what a bundle does, and what ran goes on running. Raises
        RemoteError, OutputError and BundleError (what came was something else), after which a later call goes on from
        there. `kept`: others that are answered for, of a server."""
        with self._lock:
            wanted = tuple(dict.fromkeys(one for one in kept if one != digest)) if self.tier != "device" else ()
            if digest == self.state.active:
                self._settle()
                if digest is not None:
                    self._prove(digest)
                self._keep(client, wanted)
                self._note("idle")
            elif digest is None:
                self._stop()
            elif digest in self.state.refused:
                self._note("failed", digest, self.state.refused[digest])
            else:
                self._take(client, digest, wanted)

    def heard(self) -> None:
        """The fleet was reached: what runs does not break the network."""
        with self._lock:
            if not self.state.heard and self.state.confirmed:
                self._write(self.state.model_copy(update={"heard": True}))

    def unheard(self) -> None:
        """The fleet was not reached: after long enough what was switched to last is left."""
        with self._lock:
            state = self.state
            waited = self._now() - self._switched_at
            if not state.heard and self._hear_s and waited >= self._hear_s and state.previous and state.active:
                self._fall_back(f"the fleet was not reached within {self._hear_s:g} s of the switch to it")

    def leave(self, slot: Path, reason: str) -> None:
        """What runs in `slot` cannot be kept running: back to the one before, where there is one. Where the disk has
        damaged it, it comes anew with the next order, once: a disk that does so again is no reason to load for ever."""
        with self._lock:
            if self.state.active is None or slot.name != self.state.active:
                return
            if not self._is_whole(slot.name):
                reason, again = f"{reason}: it is damaged on this disk", self._damaged != slot.name
                self._damaged = slot.name
                self._fall_back(reason, is_refused=not again)
                return
            if self.state.previous is None or not self._is_whole(self.state.previous):
                logger.error("%s, and there is no other bundle to fall back to", reason)
                return
            self._fall_back(reason)

    def _prove(self, digest: str) -> None:
        """What was fallen back to, and is wanted again, tells anew how it answers: tried once, beside what runs."""
        if self.state.checked or self._proven == digest:
            return
        self._proven = digest
        self._tell("checking", digest)
        verdict = self._trial(self.home.slot(digest), self.tier)
        if verdict.reason:
            logger.warning("%s runs, and did not answer its golden inputs again: %s", digest[:16], verdict.reason)
        self._keep_in_mind({"checked": verdict.checked, "right": verdict.right})

    # The steps

    def _take(self, client: AgentClient, digest: str, kept: tuple[str, ...]) -> None:
        try:
            verdict = self._obtain(client, digest)
        except (BundleError, OutputError) as error:  # told, and tried again: what is signed, or the disk, may change
            self._note("failed", digest, error.message)
            raise
        if verdict.is_right:
            self._switch(digest, verdict, kept)
            self._keep(client, kept)
        else:
            self._refuse(digest, verdict.reason)

    def _obtain(self, client: AgentClient, digest: str) -> Verdict:
        """The bundle in a slot, tried; where this disk has damaged it, fetched and tried once more."""
        slot = self.home.slot(digest)
        if self._is_whole(digest):
            self._tell("checking", digest)
            verdict = self._trial(slot, self.tier)
            if not verdict.damaged:
                return verdict
            drop(self.home, digest)
        offer, index = ask(client, digest)
        if self.tier == "device" and self.state.previous is not None:  # a device holds two
            self._write(self.state.model_copy(update={"previous": None}))
        self._tell("downloading", digest)
        fetch(self.home, client, index, self.state.named)
        fill(self.home, digest, offer, index)
        self._tell("checking", digest)
        return self._trial(slot, self.tier)

    def _switch(self, digest: str, verdict: Verdict, kept: tuple[str, ...]) -> None:
        before = self.state
        self._tell("switching", digest)
        self.turning()
        self._write(
            before.model_copy(
                update={
                    "active": digest,
                    "confirmed": False,
                    "heard": False,
                    "checked": verdict.checked,
                    "right": verdict.right,
                    "previous": before.active,
                    "kept": tuple(one for one in kept if one in before.named),
                }
            )
        )
        self._switched_at = self._now()
        trouble = self._run()
        if trouble:
            self._fall_back(trouble)
            return
        self._note("idle")
        self._is_tidy = False
        self._settle()

    def _confirm(self, digest: str) -> None:
        """After a start in the middle of a switch."""
        verdict = self._trial(self.home.slot(digest), self.tier)
        trouble = verdict.reason or self._run()
        if trouble:
            self._fall_back(trouble)
        else:
            self._keep_in_mind({"confirmed": True, "checked": verdict.checked, "right": verdict.right})
            self._note("idle")

    def _run(self) -> str:
        """The runtime answers with what counts; why it does not, else ""."""
        state = self.state
        try:
            self.home.point(state.active)
        except EdgekitError as error:
            logger.warning("applications are not told: %s", error.message)
        kept = [self.home.slot(one) for one in state.kept if one != state.active]
        try:
            self._runtime.use(None if state.active is None else self.home.slot(state.active), kept)
        except EdgekitError as error:
            logger.warning("%s is not answered for: %s", state.active, error.message)
            self._runs = False
            return error.message
        self._runs = True
        return ""

    def _fall_back(self, reason: str, *, is_refused: bool = True) -> None:
        """To what ran before; to nothing where that is damaged, rather than to what answers wrong."""
        state = self.state
        failed, back = state.active, state.previous
        assert failed is not None
        if back is not None and not self._is_whole(back):
            back = None
        logger.warning("back from %s to %s: %s", failed[:16], back, reason)
        self._proven = None
        self.turning()
        self._keep_in_mind(
            {
                "active": back,
                "confirmed": True,
                "heard": True,
                "previous": None,
                "kept": tuple(one for one in state.kept if one != back),
                "checked": 0,
                "right": 0,
                "refused": self._with(failed, reason) if is_refused else state.refused,
            }
        )
        self._run()
        if is_refused:
            self._note("failed", failed, reason)
        else:
            self._note("idle")

    def _refuse(self, digest: str, reason: str) -> None:
        logger.warning("%s is refused: %s", digest[:16], reason)
        self._write(self.state.model_copy(update={"refused": self._with(digest, reason)}))
        self._note("failed", digest, reason)
        collect(self.home, self.state.named)

    def _stop(self) -> None:
        self.turning()
        self._write(State(tier=self.tier, refused=self.state.refused))
        self._run()
        self._note("idle")
        collect(self.home, self.state.named)

    def _keep(self, client: AgentClient, wanted: tuple[str, ...]) -> None:
        """A server answers for these too, from the next moment on; those it was told to let go it lets go. Each is
        named as soon as it is there, so that what comes after it leaves it alone."""
        before = self.state.kept
        for digest in wanted:
            if digest not in self.state.kept and self._is_kept(client, digest):
                self._write(self.state.model_copy(update={"kept": (*self.state.kept, digest)}))
        self._write(self.state.model_copy(update={"kept": tuple(one for one in wanted if one in self.state.kept)}))
        if self.state.kept != before:
            self._run()
            collect(self.home, self.state.named)

    def _is_kept(self, client: AgentClient, digest: str) -> bool:
        if digest in self.state.named and self._is_whole(digest):
            return True
        if digest in self.state.refused:
            return False
        try:
            verdict = self._obtain(client, digest)
        except SignatureError as error:
            logger.warning("%s is not kept: %s", digest[:16], error.message)
            return False
        if not verdict.is_right:
            self._refuse(digest, verdict.reason)
        return verdict.is_right

    # Its memory

    def _is_whole(self, digest: str) -> bool:
        return is_whole(self.home.slot(digest), digest)

    def _with(self, digest: str, reason: str) -> dict[str, str]:
        return dict([*self.state.refused.items(), (digest, reason[:2000])][-MAX_REMEMBERED:])

    def _settle(self) -> None:
        """What a cut or a failing disk left undone of an update that had succeeded."""
        self.home.point(self.state.active)
        self._write(self.state.model_copy(update={"refused": {}, "confirmed": self.state.confirmed or self._runs}))
        if not self._is_tidy:
            collect(self.home, self.state.named)
            self._is_tidy = True

    def _write(self, state: State) -> None:
        if state != self.state:
            self.home.write_state(state)
            self.state = state

    def _keep_in_mind(self, update: dict[str, object]) -> None:
        """What must hold even on a disk that cannot be written to."""
        state = self.state.model_copy(update=update)
        try:
            self._write(state)
        except EdgekitError as error:
            logger.warning("not written, and held until the next start: %s", error.message)
            self.state = state

    def _tell(self, phase: Phase, candidate: str) -> None:
        """In the middle of an update; what it ends with is said by the next sync."""
        self._note(phase, candidate)
        self.report(self.slot)

    def _note(self, phase: Phase, candidate: str | None = None, reason: str = "") -> None:
        state = self.state
        self.slot = Slot(
            running=state.active,
            candidate=candidate,
            phase=phase,
            reason=reason,
            checked=state.checked if state.active else 0,
            right=state.right if state.active else 0,
        )
