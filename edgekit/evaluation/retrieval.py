"""Does a query find its document among all of them?"""

from __future__ import annotations

import numpy as np

from edgekit.errors import DataError
from edgekit.evaluation.embeddings import unit_rows


def ranks(queries: np.ndarray, documents: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """int64 [Q] from 0: how many of `documents` [N, D] lie closer by cosine to each of `queries` [Q, D] than its own
    (`relevant`, indices [Q]). Of equal cosines the others count as closer: constant embeddings find nothing.

    Raises DataError where the shapes or indices do not fit.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1:] != documents.shape[1:]:
        raise DataError(f"queries {queries.shape} and documents {documents.shape}, allowed [Q, D] and [N, D]")
    if relevant.shape != queries.shape[:1] or (
        len(relevant) and not 0 <= relevant.min() <= relevant.max() < len(documents)
    ):
        raise DataError(
            f"{len(relevant)} relevant documents for {len(queries)} queries, "
            f"allowed one index below {len(documents)} for each"
        )
    similar = unit_rows(queries) @ unit_rows(documents).T
    own = np.take_along_axis(similar, relevant[:, None], 1)
    found: np.ndarray = (similar >= own).sum(1) - 1
    return found


def recall_hits(queries: np.ndarray, documents: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """bool [Q]: whether the relevant document is among the `k` nearest; their mean is recall@k. Errors as `ranks`."""
    if not 1 <= k <= len(documents):
        raise DataError(f"recall at {k} of {len(documents)} documents, allowed 1 to {len(documents)}")
    return ranks(queries, documents, relevant) < k
