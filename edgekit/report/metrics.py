"""How far an artifact is from its reference: pure functions over numpy arrays."""

from __future__ import annotations

import math

import numpy as np


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """10 log10(sum reference^2 / sum (reference - actual)^2), any shape, in dB; inf where they are equal."""
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    noise = float(np.square(wanted - got).sum())
    signal = float(np.square(wanted).sum())
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def top1_agreement(reference: np.ndarray, actual: np.ndarray) -> float:
    """The share of rows, [N, classes], whose largest class is the same."""
    return float((reference.argmax(-1) == actual.argmax(-1)).mean())


def cosine(reference: np.ndarray, actual: np.ndarray) -> float:
    """The mean over rows, [N, ...], of the cosine between the rows flattened."""
    wanted = reference.reshape(len(reference), -1).astype(np.float64)
    got = actual.reshape(len(actual), -1).astype(np.float64)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    return float(np.mean((wanted * got).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)))


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval (Wilson 1927) of a share observed on `count` samples, 95 % by default."""
    if count == 0:
        return 0.0, 1.0
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def expected_drop(reference: np.ndarray, actual: np.ndarray) -> float:
    """The accuracy that answers lose, in points, without labels: mean of p(ref's class) - p(actual's class), [N, C].

    p is the softmax of the reference logits: where the reference model is calibrated, p(class) is the chance that the
    class is right, so that this is the expected loss of accuracy. Never negative.
    """
    shifted = np.exp(reference.astype(np.float64) - reference.max(-1, keepdims=True))
    probability = shifted / shifted.sum(-1, keepdims=True)
    rows = np.arange(len(reference))
    lost = probability.max(-1) - probability[rows, actual.argmax(-1)]
    return float(100 * lost.mean())
