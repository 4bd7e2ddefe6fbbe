"""Minimum closure: booleans of least total cost under implications (Picard, Management Science 1976).

Whoever brings a gain hangs on the source, whoever costs on the sink, each by an edge of that capacity; an implication
is an edge of unlimited capacity. What the source still reaches after a maximum flow is 1.

scipy's maximum_flow takes capacities of 32 bits. Costs are rounded down to a first scale; a second flow, in what the
first one left, works on a scale that is finer by the ratio of the two flows, some 100,000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.errors import MissingExtraError, PlanError

FLOW_MOST = 2**29
# Finer than this share of all costs, doubles that were added in another order differ anyway.
FINEST = 2.0**-44
EMPTY = "no partition keeps the nodes' tiers in order"


class EmptySpaceError(PlanError):
    """What is set to 1 implies what is set to 0."""


def least_closure(
    cost: np.ndarray, implications: np.ndarray, ones: np.ndarray, zeros: np.ndarray
) -> tuple[np.ndarray, float]:
    """`cost` [b] of each boolean, `implications` [i, 2] as rows (if, then), indices of booleans set to 1 and to 0.

    Gives the booleans [b], as few of them 1 as any optimum has, and by how much their cost may pass the optimum's.
    Costs that are integers below 2^29 in all are solved exactly. Raises EmptySpaceError, and MissingExtraError
    without scipy.
    """
    try:
        from scipy.sparse import coo_array, csr_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise MissingExtraError("scipy", "export", "finding cuts") from error
    count = len(cost)
    pins = np.concatenate([_rows(ones, count), _rows(zeros, count + 1)])
    both = np.concatenate([implications, pins, pins[:, ::-1]])
    graph = csr_array((np.ones(len(both), np.int8), (both[:, 0], both[:, 1])), shape=(count + 2, count + 2))
    groups, label = connected_components(graph, connection="strong")
    source, sink = int(label[count]), int(label[count + 1])
    if source == sink:
        raise EmptySpaceError(EMPTY, binding="tiers")
    total = np.bincount(label[:count], cost, groups)
    total[[source, sink]] = 0.0
    whole = float(np.abs(total).sum())
    edges = label[implications].astype(np.int64)
    edges = edges[edges[:, 0] != edges[:, 1]]
    edges = np.stack(np.divmod(np.unique(edges[:, 0] * groups + edges[:, 1]), groups), axis=1)
    gains, losses = np.flatnonzero(total < 0), np.flatnonzero(total > 0)
    start = np.concatenate([np.full(len(gains), source), losses, edges[:, 0]])
    end = np.concatenate([gains, np.full(len(losses), sink), edges[:, 1]])
    room = np.concatenate([-total[gains], total[losses], np.full(len(edges), 2.0 * whole + 1.0)])
    capacity = coo_array((room, (start, end)), shape=(groups, groups)).tocsr()
    terminals = len(gains) + len(losses)
    scale = _scale(whole, whole)
    residual = _augmented(capacity, source, sink, scale)
    if bool((total * scale == np.rint(total * scale)).all()):
        return _closed(_reached(residual, source, scale), sink, edges)[label[:count]], 0.0
    # Each gain and each loss was rounded down by less than a unit: no more than this can still flow.
    finer = _scale(terminals / scale, whole)
    residual = _augmented(residual, source, sink, finer)
    return _closed(_reached(residual, source, finer), sink, edges)[label[:count]], terminals / finer


def _closed(reached: np.ndarray, sink: int, edges: np.ndarray) -> np.ndarray:
    """Only where a 1 leads to a 0 through implications does the smallest cut break one of them, or is there none."""
    if reached[sink] or bool((reached[edges[:, 0]] & ~reached[edges[:, 1]]).any()):
        raise EmptySpaceError(EMPTY, binding="tiers")
    return reached


def _rows(booleans: np.ndarray, terminal: int) -> np.ndarray:
    return np.stack([booleans, np.full(len(booleans), terminal)], axis=1)


def _scale(flow: float, whole: float) -> float:
    """The power of two at which `flow` fits."""
    return float(2.0 ** np.floor(np.log2(FLOW_MOST / max(flow, FINEST * whole, 1e-200))))


def _augmented(residual: Any, source: int, sink: int, scale: float) -> Any:
    """What capacity is left after a maximum flow in units of 1 / scale."""
    from scipy.sparse.csgraph import maximum_flow

    units = residual.copy()
    units.data = np.minimum(np.floor(residual.data * scale), 2 * FLOW_MOST).astype(np.int32)
    return (residual - maximum_flow(units, source, sink).flow / scale).tocsr()


def _reached(residual: Any, source: int, scale: float) -> np.ndarray:
    """What can still be reached from the source through whole units."""
    from scipy.sparse.csgraph import breadth_first_order

    left = residual.copy()
    left.data = np.floor(left.data * scale + 1e-6)
    left.eliminate_zeros()
    reached = np.zeros(left.shape[0], bool)
    reached[breadth_first_order(left, source, return_predecessors=False)] = True
    return reached
