"""What the knobs of every family cost, the ones that tell most for their time first, until the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgekit.search.families import Tables, tables_of
from edgekit.search.knobs import Knobs
from edgekit.search.space import NO_METHOD, Family


def measure(
    families: Sequence[Family],
    knobs: Knobs,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    *,
    for_size: bool = False,
) -> dict[Family, Tables]:
    """Precisions, then tokens, then widths, which take the longest; `for_size`: widths before tokens, which make
    nothing smaller. After `deadline` (of `clock`) nothing is begun: a method of pruning that was not measured is not
    chosen, and blocks keep their widths. The first family of all is measured in any case."""
    knobs.time_left = lambda: clock() < deadline
    found: dict[Family, Tables] = {}
    plain = [family for family in families if family.method == NO_METHOD]
    pruning = [family for family in families if family.method != NO_METHOD]
    order = [(False, plain), (False, pruning), (True, plain), (True, pruning)]
    if for_size:
        order.remove((False, pruning))
    for with_widths, chosen in order:
        for family in chosen:
            if found and not knobs.time_left():
                return found
            tables = tables_of(family, knobs, with_widths=with_widths)
            if tables is not None:
                found[family] = tables
    return found
