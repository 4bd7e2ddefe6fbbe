"""A rollout: a bundle, whom it is for, in which steps, and what must hold at each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekit.fleet.protocol.wire import Digest, Heard, Identifier, Text, Wire

# running: it advances; paused: by a person, or by a guard (`reason`); the last three are the end.
RolloutState = Literal["running", "paused", "rolling-back", "complete", "rolled-back", "aborted"]
ENDED: tuple[RolloutState, ...] = ("complete", "rolled-back", "aborted")

# waiting: not asked yet; asked: it should move; right: answers right with the new digest; wrong: it refused, or fell
# back; lost: not heard of while it was asked; reverting: told to go back, and it has not yet; reverted: it has; left:
# revoked, or out of the group before it was asked.
DeviceState = Literal["waiting", "asked", "right", "wrong", "lost", "reverting", "reverted", "left"]

Share = Annotated[float, Field(gt=0, le=1)]


class RolloutOrder(Wire):
    """`steps`: shares of the devices, rising to 1: the first is the canary. `guards`: "agreement>=0.97,p95<=80ms".
    `soak_s`: how long a step must hold before the next. `window`: devices under way at once, 0 for no bound.
    `max_wrong`: devices that may refuse it, fall back or fall silent on the way before it turns back. `timeout_s`: a
    device that does not answer by then is lost, and what cannot be judged by then pauses the rollout. One that was
    silent already when it was asked is lost too, but does not count as wrong.
    """

    bundle: Digest
    group: str = Field(max_length=500)
    steps: tuple[Share, ...] = Field(default=(0.05, 0.25, 1.0), min_length=1, max_length=16)
    guards: str = Field(default="", max_length=500)
    soak_s: float = Field(default=300.0, ge=0, le=30 * 86_400)
    window: int = Field(default=0, ge=0)
    max_wrong: int = Field(default=0, ge=0)
    timeout_s: float = Field(default=1800.0, gt=0, le=30 * 86_400)

    @model_validator(mode="after")
    def _check(self) -> RolloutOrder:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 1.0:
            raise ValueError(f"steps {list(self.steps)}, allowed shares that rise to 1")
        return self


class Tally(Heard):
    waiting: int = 0
    asked: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    reverting: int = 0
    reverted: int = 0
    left: int = 0


class GuardView(Heard):
    """`value` None: nothing to judge by yet; in shares, ms, mJ or degrees Celsius. `holds` None: not told yet, and
    `why` says what is missing."""

    text: str
    value: float | None
    holds: bool | None
    samples: int
    why: str = ""


class RolloutView(Heard):
    """`stage`: which of `stages`. `reason`: why it stands or turned back, or what it waits for."""

    id: Identifier
    bundle: Digest
    name: str
    group: str
    state: RolloutState
    stage: int
    stages: tuple[str, ...]
    tally: Tally
    guards: tuple[GuardView, ...] = ()
    reason: Text = ""
    started_at: float
    started_by: str
    stage_at: float
    ended_at: float | None = None
    order: RolloutOrder
    version: int
