"""Learned dual clipping: both ends of a grid's range, found by what they cost the layers behind.

Li et al. 2024, RepQuant, arXiv:2402.05628, section 3.3: outliers leave the range of a channel where the finer step
for all others is worth more. Both ends are learned by gradient, the rounding passing gradients straight through
(Esser et al. 2020, LSQ, arXiv:1902.08153, section 2.1). The cost here is the error of the layers' outputs, in closed
form  (x - q(x)) W^T W (x - q(x))^T,  instead of the activation's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
STEPS, RATE = 40, 0.01
# What clipping has to leave at most of the error on rows that it was not learned on: saturation, unlike rounding, errs
# the same way in every token, and costs the outputs more than its share.
WORTHWHILE = 0.7
SMALLEST_SPAN = 1e-9


def round_between(value: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """`value` [R, C] on `levels` + 1 equal steps from `low` to `high` ([C] or []); differentiable in all three.

    The grid need not hold zero: whoever moves the channels to a common grid moves it there.
    """
    step = (high - low).clamp_min(SMALLEST_SPAN) / levels
    place = ((value - low) / step).clamp(0, levels)
    return (place + (place.round() - place).detach()) * step + low


def output_error(value: Tensor, rounded: Tensor, metric: Tensor) -> Tensor:
    """[]: mean over rows of (x - q) M (x - q)^T; metric [C, C] is W^T W of all layers that read `value` [R, C]."""
    error = value - rounded
    return ((error @ metric) * error).sum() / len(value)


def learn_clips(
    value: Tensor, low: Tensor, high: Tensor, metric: Tensor, levels: int, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """(low, high) inside the given extremes, in their shape ([C] or []); the extremes where clipping is not worthwhile.

    Learned on every other row of `value`, judged on the rest. Starts from the best common share of the extremes, then
    both ends move apart from each other by Adam.
    """
    centre, half = (high + low) / 2, (high - low) / 2
    seen, unseen = value[::2], value[1::2]
    if not len(unseen):
        return low, high

    def error(rows: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return output_error(rows, round_between(rows, centre - half * lower, centre + half * upper, levels), metric)

    whole = torch.ones_like(low)
    shared = min((whole * share for share in SHARES), key=lambda one: float(error(seen, one, one)))
    bounds = [shared.clone().requires_grad_(), shared.clone().requires_grad_()]
    tried = [(shared, shared)]
    optimizer = torch.optim.Adam(bounds, RATE)
    with torch.enable_grad():
        for _ in range(steps):
            loss = error(seen, *bounds)
            if not loss.item() > 0:
                break
            optimizer.zero_grad()
            (loss / loss.item()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for bound in bounds:
                    bound.clamp_(0.05, 1.0)
    tried.append((bounds[0].detach(), bounds[1].detach()))
    lower, upper = min(tried, key=lambda one: float(error(unseen, *one)))
    if not float(error(unseen, lower, upper)) < WORTHWHILE * float(error(unseen, whole, whole)):
        return low, high
    return centre - half * lower, centre + half * upper
