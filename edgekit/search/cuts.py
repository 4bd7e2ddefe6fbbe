"""Cut, bottleneck and rate together with the recipe: several that meet the limits are cut where it pays, and the one
stays that sends least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.errors import PlanError
from edgekit.report.model import SplitRow
from edgekit.search.limits import SearchLimits
from edgekit.search.verify import Made
from edgekit.split_outcome import SplitOutcome

# Cutting, fitting bottlenecks and coding take minutes for each recipe.
MOST_CUT = 3


def cut_jointly(
    made: Sequence[Made], cut: Callable[[Made], SplitOutcome], limits: SearchLimits
) -> tuple[Made, SplitOutcome]:
    """`made`: recipes within the other limits, the best first. Where nothing limits the bytes, the best is cut alone.

    Raises PlanError where none can be cut, or none keeps the limits on bytes and drop, with the nearest.
    """
    found: list[tuple[float, Made, SplitOutcome]] = []
    nearest: SplitRow | None = None
    refusals: list[PlanError] = []
    for one in made[: MOST_CUT if limits.bytes_sent is not None else 1]:
        try:
            outcome = cut(one)
        except PlanError as error:
            refusals.append(error)
            continue
        if limits.bytes_sent is None:
            return one, outcome
        rows = [row for row in outcome.rows if row.bytes_mean > 0 and (limits.drop is None or row.drop <= limits.drop)]
        least = min(rows, key=lambda row: row.bytes_mean, default=None)
        if least is not None and (nearest is None or least.bytes_mean < nearest.bytes_mean):
            nearest = least
        if least is not None and least.bytes_mean <= limits.bytes_sent:
            found.append((least.bytes_mean, one, outcome))
    if found:
        _, best, outcome = min(found, key=lambda row: row[0])
        return best, outcome
    if nearest is not None and limits.bytes_sent is not None:
        raise PlanError(
            f"no cut within {limits.drop:g} points sends {limits.bytes_sent:g} bytes or less; the nearest, "
            f"{nearest.variant} at rate {nearest.rate}, sends {nearest.bytes_mean:.0f} and loses {nearest.drop:.2f}",
            binding="bytes_sent",
            hint="raise the limit on bytes or drop, or train the bottleneck with --train DIR",
        )
    raise refusals[0] if refusals else PlanError("no cut keeps the limit on the drop", binding="drop")
