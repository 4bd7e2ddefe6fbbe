"""The accuracy of embeddings on labelled samples: by their nearest neighbours, and by a linear probe."""

from __future__ import annotations

import numpy as np

from edgekit.errors import DataError

NEIGHBOURS, TEMPERATURE = 10, 0.07
RIDGE = 1e-2
SMALLEST = 1e-12  # a row of zeros has no direction; it stays zeros


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """[N, D] with every row at length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / np.maximum(lengths, SMALLEST)
    return scaled


def row_cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N]: the cosine of each row of [N, D] with the same row of the other. Raises DataError where shapes differ."""
    if rows.shape != others.shape or rows.ndim != 2:
        raise DataError(f"embeddings of shapes {rows.shape} and {others.shape}, allowed [N, D] twice")
    found: np.ndarray = (unit_rows(rows.astype(np.float64)) * unit_rows(others.astype(np.float64))).sum(1)
    return found


def neighbour_classes(
    known: np.ndarray,
    classes: np.ndarray,
    asked: np.ndarray,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """int64 [M]: votes of the nearest of `known` [N, D] by cosine, weighted by exp(cosine / temperature), for `asked`
    [M, D] (Caron et al., arXiv:2104.14294, section 4.2). `classes`: integers [N] from 0.

    Raises DataError where the shapes do not fit, or there are fewer known rows than neighbours.
    """
    _check(known, classes, asked)
    if not 1 <= neighbours <= len(known):
        raise DataError(f"{neighbours} neighbours of {len(known)} known embeddings, allowed 1 to {len(known)}")
    similar = unit_rows(asked) @ unit_rows(known).T
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :neighbours]
    weight = np.exp(np.take_along_axis(similar, nearest, 1) / temperature)
    votes = np.zeros((len(asked), int(classes.max()) + 1))
    for place in range(neighbours):
        np.add.at(votes, (np.arange(len(asked)), classes[nearest[:, place]]), weight[:, place])
    winners: np.ndarray = votes.argmax(1)
    return winners


def probe_classes(known: np.ndarray, classes: np.ndarray, asked: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """int64 [M]: a linear classifier of `asked` [M, D], fitted on `known` [N, D] by ridge regression on one-hot
    `classes` (integers [N] from 0), features standardised. In closed form, so that it has no steps to tune.

    Raises DataError where the shapes do not fit.
    """
    _check(known, classes, asked)
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    rows, others = ((value - mean) / deviation for value in (known, asked))
    wanted = np.eye(int(classes.max()) + 1)[classes]
    gram = rows.T @ rows + ridge * len(rows) * np.eye(rows.shape[1])
    weights = np.linalg.solve(gram, rows.T @ (wanted - wanted.mean(0)))
    answer: np.ndarray = (others @ weights + wanted.mean(0)).argmax(1)
    return answer


def _check(known: np.ndarray, classes: np.ndarray, asked: np.ndarray) -> None:
    if known.ndim != 2 or asked.ndim != 2 or known.shape[1:] != asked.shape[1:] or not len(known):
        raise DataError(f"known embeddings {known.shape} and asked {asked.shape}, allowed [N, D] and [M, D]")
    if classes.shape != known.shape[:1] or classes.dtype.kind not in "iu" or int(classes.min()) < 0:
        raise DataError(
            f"classes {classes.dtype} {classes.shape} for {len(known)} embeddings, allowed one integer from 0 for each"
        )
