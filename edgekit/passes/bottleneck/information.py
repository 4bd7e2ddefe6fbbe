"""The information plane of cuts and rates: what a coded feature still knows of the input and of the answer.

`mutual_information` counts neighbours (Kraskov et al., Phys. Rev. E 69, 066138, 2004) in the form that Gao et al.
(NeurIPS 2017, arXiv:1709.06212) gave it for variables that are continuous, discrete or both by turns, as features are
once a coarse step has rounded them. The width is not chosen: it is each sample's distance to its k-th neighbour.

Its limits, which a reader of the plane has to know: N samples show at most about log2(N) bits; a k-th neighbour in
many dimensions is far away, so high dimensions are first projected onto a few axes, and what lies outside of them is
not seen. By the data processing inequality the result then estimates a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor

from edgekit.errors import DataError
from edgekit.model import Model, Sample
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.registry import CODECS
from edgekit.report.model import InformationPoint

MINIMUM_SAMPLES = 8
TIE = 1e-12  # standardized values nearer than this are the same value
SHRINK = 0.5  # weight of the identity in a covariance that has as many axes as samples


def mutual_information(x: Tensor, y: Tensor, *, neighbours: int = 3, axes: int = 6) -> float:
    """I(X; Y) in bits from N pairs, `x`: [N, ...], `y`: [N, ...], of any number type; never below zero.

    A side with more than `axes` columns is projected onto those most correlated with the other side, fitted on one
    half of the samples and counted on the other, both ways round: axes that were fitted on the samples that are
    counted would find dependence in pure noise. A single column of integers is a class, not a number.

    Raises DataError for fewer than 8 pairs, or values that are not finite.
    """
    left, right = _columns(x), _columns(y)
    if len(left) != len(right) or len(left) < MINIMUM_SAMPLES:
        raise DataError(
            f"{len(left)} and {len(right)} samples, allowed as many of both and at least {MINIMUM_SAMPLES}",
            hint="give more calibration data",
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise DataError("NaN or infinity among the samples", hint="check the model's outputs")
    most_left, most_right = (side.shape[1] if _is_class(given) else axes for side, given in ((left, x), (right, y)))
    if left.shape[1] <= most_left and right.shape[1] <= most_right:
        return max(0.0, count_neighbours(left, right, neighbours) / math.log(2))
    # By chance, not by turns: samples may come sorted, or class after class.
    first, second = np.array_split(np.random.default_rng(0).permutation(len(left)), 2)
    nats = 0.0
    for fit, judge in ((first, second), (second, first)):
        pair = shared_axes((left[fit], left[judge]), (right[fit], right[judge]), (most_left, most_right))
        nats += count_neighbours(*pair, neighbours) / 2
    return max(0.0, nats / math.log(2))


def count_neighbours(x: np.ndarray, y: np.ndarray, neighbours: int) -> float:
    """The estimate in nats, [N, D] and [N, D'] float64 in the largest norm; may be a little below zero.

    At sample i the radius is the joint distance to its k-th neighbour, and psi(k) + psi(N) - psi(n_x) - psi(n_y)
    counts what lies nearer than that in x and in y, itself included (Kraskov's first form). Where the radius is zero
    (a discrete value) k becomes the number of samples at that very place, and n_x, n_y count those at distance zero.
    """
    x, y = _standardized(x), _standardized(y)
    count = len(x)
    k = min(neighbours, count - 1)
    joint = cKDTree(np.hstack([x, y]))
    radius = joint.query(joint.data, k=[k + 1], p=np.inf)[0][:, 0]
    same = radius <= TIE
    # Just inside of the radius, or just around a tie: distances carry the rounding of a subtraction.
    reach = np.where(same, 2 * TIE, radius * (1 - 1e-12))
    alike = joint.query_ball_point(joint.data, np.where(same, reach, 0.0), p=np.inf, return_length=True)
    near_x = cKDTree(x).query_ball_point(x, reach, p=np.inf, return_length=True)
    near_y = cKDTree(y).query_ball_point(y, reach, p=np.inf, return_length=True)
    inside = np.where(same, alike, k)
    return float(np.mean(digamma(inside) + digamma(count) - digamma(near_x) - digamma(near_y)))


Halves = tuple[np.ndarray, np.ndarray]


def shared_axes(x: Halves, y: Halves, most: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Samples to fit on and samples to judge, [N, D] and [M, D] of x, [N, D'] and [M, D'] of y -> the judged ones on
    the axes of the largest correlation, [M, a] and [M, a'].

    Canonical correlation in the span of the fitted samples, so that D may be far above N; each covariance is shrunk
    towards a multiple of the identity. A side of at most `most` columns is left as it is.
    """
    fitted_x, judged_x = _whitened(*x)
    fitted_y, judged_y = _whitened(*y)
    left, _, right = np.linalg.svd(fitted_x.T @ fitted_y, full_matrices=False)
    return (
        x[1] if x[1].shape[1] <= most[0] else judged_x @ left[:, : most[0]],
        y[1] if y[1].shape[1] <= most[1] else judged_y @ right[: most[1]].T,
    )


def _whitened(fit: np.ndarray, judge: np.ndarray) -> Halves:
    """[N, D], [M, D] -> [N, r], [M, r]: on the principal axes of the first, each over its shrunk deviation."""
    mean = fit.mean(0)
    centred = fit - mean
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    kept = squares > 1e-12 * max(float(squares[-1]), 1e-300)
    if not kept.any():
        return np.zeros((len(fit), 1)), np.zeros((len(judge), 1))
    deviations, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    variances = squares[kept] / len(fit)
    shrink = SHRINK * kept.sum() / len(fit)
    shrunk = np.sqrt((1 - shrink) * variances + shrink * variances.mean())
    judged = (judge - mean) @ centred.T @ vectors / deviations
    return vectors * deviations / shrunk, judged / shrunk


def _standardized(values: np.ndarray) -> np.ndarray:
    """Each column over its deviation: the estimate is the same for any scale, its neighbourhoods are not."""
    deviation = values.std(0)
    scaled: np.ndarray = (values - values.mean(0)) / np.where(deviation > 1e-12, deviation, 1.0)
    return scaled


def _is_class(values: Tensor) -> bool:
    return not values.is_floating_point() and values.numel() == len(values)


def _columns(values: Tensor) -> np.ndarray:
    """[N, ...] -> [N, D] float64; classes become indicator columns: all of them are equally far apart."""
    rows = values.detach().cpu().reshape(len(values), -1)
    if _is_class(values):
        rows = torch.unique(rows, return_inverse=True)[1]
        rows = torch.nn.functional.one_hot(rows[:, 0])
    array: np.ndarray = rows.double().numpy()
    return array


@dataclass(frozen=True)
class Received:
    """What arrives over `cut` at `rate`: `features` [N, ...] as decoded, `bits_sent` a sample on the wire."""

    cut: str
    rate: int
    bits_sent: float
    features: Tensor


def information_plane(
    inputs: Tensor, answers: Tensor, received: Iterable[Received], *, neighbours: int = 3, axes: int = 6
) -> tuple[InformationPoint, ...]:
    """I(X; T) and I(T; Y) of each feature T that arrives, for `inputs` [N, ...] and `answers` [N] or [N, ...].

    `answers`: labels, or what the float model says. The same samples, in the same order, lie behind all of them.
    """
    return tuple(
        InformationPoint(
            cut=one.cut,
            rate=one.rate,
            bits_sent=one.bits_sent,
            i_xt=mutual_information(inputs, one.features, neighbours=neighbours, axes=axes),
            i_ty=mutual_information(one.features, answers, neighbours=neighbours, axes=axes),
        )
        for one in received
    )


def receive(cut: str, squeezed: Squeezed, samples: Iterable[Sample], rates: Iterable[int] = ()) -> Iterator[Received]:
    """Sends `samples` (of the head) through the head and the codec at each of `rates` (all where empty).

    The features of a sample are put end to end: [N, values].
    """
    head = squeezed.head
    codec = CODECS.load(squeezed.kind)(head.output_specs, squeezed.rates, squeezed.tables)
    arrays = [[value.numpy() for value in head.forward(sample).values()] for sample in samples]
    for rate in rates or range(squeezed.rates):
        sizes, rows = [], []
        for features in arrays:
            payload = codec.encode(features, rate)
            decoded = codec.decode(payload, [feature.shape for feature in features], rate)
            sizes.append(8 * len(payload))
            rows.append(np.concatenate([value.reshape(-1) for value in decoded]))
        yield Received(cut, rate, float(np.mean(sizes)), torch.from_numpy(np.stack(rows)))


def answers_of(model: Model, samples: Iterable[Sample]) -> Tensor:
    """What the model's first output says of each sample: the class, [N] int64, where it classifies; else [N, ...]."""
    outputs = torch.cat([next(iter(model.forward(sample).values())) for sample in samples])
    is_classifier = model.postprocess is not None and model.postprocess.kind == "classification"
    return outputs.argmax(-1) if is_classifier else outputs
