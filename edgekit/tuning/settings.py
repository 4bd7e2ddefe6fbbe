"""What of a server can be chosen, and the file that holds a choice."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import OutputError, UnknownNameError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BATCHES = (1, 2, 4, 8, 16, 32)
DELAYS_MS = (0.0, 1.0, 2.0, 5.0, 10.0)
# Waiting longer for company than this share of the objective leaves too little of it.
LONGEST_WAIT = 0.4


@dataclass(frozen=True, order=True)
class Settings:
    """Named as the options of `edgekit serve`. `part` is whom the load is sent to, no option of the server."""

    part: str
    max_batch: int = 16
    max_delay_ms: float = 0.0
    workers: int = 1
    threads: int = 1

    @property
    def options(self) -> dict[str, int | float]:
        """Of `edgekit serve`, by parameter name."""
        return {name: value for name, value in asdict(self).items() if name != "part"}

    @property
    def words(self) -> list[str]:
        """Of its command line."""
        return [word for name, value in self.options.items() for word in (f"--{name.replace('_', '-')}", f"{value:g}")]

    def __str__(self) -> str:
        return (
            f"{self.part}, batch {self.max_batch}, wait {self.max_delay_ms:g} ms, "
            f"{self.workers} x {self.threads} thread{'s' * (self.workers * self.threads > 1)}"
        )


def space(
    parts: Iterable[tuple[str, bool]],
    cores: int,
    limit_ms: float,
    *,
    batches: Sequence[int] = BATCHES,
    delays_ms: Sequence[float] = DELAYS_MS,
) -> list[Settings]:
    """Everything worth trying: `parts` as (name, whether requests can be joined), workers times threads at most
    `cores`, no waiting where nothing can be joined or the objective leaves no time for it."""
    found = []
    crews = [(w, t) for w in _powers(cores) for t in _powers(cores) if w * t <= cores]
    for part, joins in parts:
        for batch in batches if joins else (1,):
            waits = [delay for delay in delays_ms if batch > 1 or delay == 0]
            for delay in waits:
                if delay <= LONGEST_WAIT * limit_ms:
                    found += [Settings(part, batch, delay, workers, threads) for workers, threads in crews]
    return found


def usual(settings: Sequence[Settings]) -> Settings:
    """Of a `space` what `edgekit serve` does without options: its batch, no waiting, one worker, every core."""
    mine = [one for one in settings if one.part == settings[0].part and (one.workers, one.max_delay_ms) == (1, 0.0)]
    return min(mine, key=lambda one: (abs(one.max_batch - Settings("").max_batch), -one.threads))


def sample(settings: Sequence[Settings], most: int, seed: int, always: Settings | None = None) -> list[Settings]:
    """At most so many of them, drawn at random, in their order; `always` is one of them."""
    if len(settings) <= most:
        return list(settings)
    kept = {int(index) for index in np.random.default_rng(seed).choice(len(settings), most, replace=False)}
    if always is not None and settings.index(always) not in kept:
        kept = {*sorted(kept)[1:], settings.index(always)}
    return [settings[index] for index in sorted(kept)]


def _powers(most: int) -> list[int]:
    return sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most})


def write_settings(path: Path, settings: Settings, told: str) -> None:
    """TOML that `edgekit serve --settings` reads; `told` stands above it. Raises OutputError."""
    lines = [f"# {line}" for line in told.splitlines()]
    lines.append(f"# asked for: {settings.part}")
    lines += [f"{name} = {value}" for name, value in settings.options.items()]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="choose a writable path") from error


def read_settings(path: Path, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Option names of `edgekit serve` (`known`; without, those that are tuned) -> values. Raises UsageError,
    UnknownNameError for a key that is none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"the settings {path} cannot be read: {error}", hint="a TOML file as `edgekit tune --out` writes it"
        ) from error
    allowed = set(known) if known is not None else {field.name for field in fields(Settings)} - {"part"}
    for key in table:
        if key not in allowed:
            raise UnknownNameError(f"setting in {path}", key, allowed)
    return table
