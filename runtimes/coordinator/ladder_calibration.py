"""Thresholds, temperatures and a schedule for exits one behind the other, from their answers on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.manifest import Exit, ExitPoint
from edgekit.errors import DataError
from edgekit.planning.exits import Reached, Schedule, choose_thresholds
from edgekit.runtimes.coordinator.confidence import calibration_error, confidence, fit_temperature

# What a schedule leaves beyond what went on past an exit by itself.
HEADROOM = 1.25


@dataclass(frozen=True)
class LadderCalibration:
    """`reached` by the thresholds on all samples. `errors`: the expected calibration error of each exit on the samples
    that did not fit its temperature, `raw_errors` the same at temperature 1; `judged` is their number."""

    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    reached: Reached
    errors: tuple[float, ...]
    raw_errors: tuple[float, ...]
    judged: int

    @property
    def schedule(self) -> Schedule:
        passing = 1 - np.cumsum(self.reached.left[:-1])
        return Schedule(tuple(round(float(share), 4) for share in np.clip(HEADROOM * passing, 0, 1)))

    def exits(self, parts: Sequence[str], drop: float) -> tuple[Exit, ...]:
        """The manifest's entries; `drop` in points is the variant's."""
        rows = zip(parts, self.temperatures, self.thresholds, self.reached.left, strict=False)
        return tuple(
            Exit(
                part=part,
                temperature=temperature,
                threshold=threshold,
                curve=(ExitPoint(threshold=threshold, answered=left, drop=drop),),
            )
            for part, temperature, threshold, left in rows
        )


def calibrate_ladder(
    early: Sequence[np.ndarray], final: np.ndarray, truth: np.ndarray, costs: Sequence[float], max_drop: float
) -> LadderCalibration:
    """`early`: logits [N, classes] at each exit, `final` at the end, `truth` int [N]; `costs` up to and with each exit,
    and to the end. Every other sample fits the temperatures, the others judge them.

    The thresholds keep `max_drop` points twice: counted in right answers, and in what the end's calibrated probability
    gives to the answers taken, which wavers far less on a hundred samples. Raises DataError for fewer than 2 samples or
    logits of another shape.
    """
    if len(final) < 2 or any(logits.shape != final.shape for logits in early) or truth.shape != final.shape[:1]:
        raise DataError(
            f"logits {[list(logits.shape) for logits in early]} at the exits and {list(final.shape)} at the end, "
            f"{len(truth)} classes; allowed the same [N, classes] and N, from 2",
            hint="give more held-out samples",
        )
    fits = np.arange(len(truth)) % 2 == 0
    temperatures = tuple(fit_temperature(logits[fits], truth[fits]) for logits in early)
    sure = np.stack([confidence(logits, at) for logits, at in zip(early, temperatures, strict=True)])
    answers = np.stack([logits.argmax(-1) for logits in (*early, final)])
    right = answers == truth
    believed = _probabilities(final, fit_temperature(final[fits], truth[fits]))
    expected = np.take_along_axis(believed, answers.T, 1).T
    thresholds, reached = choose_thresholds(sure, right, costs, max_drop, expected)
    return LadderCalibration(
        temperatures,
        thresholds,
        reached,
        tuple(calibration_error(s[~fits], r[~fits]) for s, r in zip(sure, right, strict=False)),
        tuple(calibration_error(confidence(e)[~fits], r[~fits]) for e, r in zip(early, right, strict=False)),
        int((~fits).sum()),
    )


def _probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares
