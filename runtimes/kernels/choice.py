"""Which configuration a launch takes: the one that its shapes ask for, or one that a benchmark tries in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from edgekit.runtimes.kernels.base import Config


@dataclass
class Trial:
    """`wanted`: the place of a configuration, None for the launch's own choice. A launch inside fills in how many are
    `offered` and which one was `taken`."""

    wanted: int | None = None
    offered: int = 1
    taken: int = 0


_TRIAL: ContextVar[Trial | None] = ContextVar("trial", default=None)


def choose(configs: Sequence[Config], own: int) -> Config:
    """`configs[own]`, unless a trial wants another. One that does not fit the shapes fails or computes something else:
    whoever tries compares."""
    trial = _TRIAL.get()
    if trial is None:
        return configs[own]
    trial.offered = len(configs)
    trial.taken = own if trial.wanted is None else trial.wanted
    return configs[trial.taken]


@contextmanager
def trying(wanted: int | None = None) -> Iterator[Trial]:
    """Launches inside take the configuration `wanted`."""
    trial = Trial(wanted)
    token = _TRIAL.set(trial)
    try:
        yield trial
    finally:
        _TRIAL.reset(token)
