from __future__ import annotations

import numpy as np
import pytest

from edgekit.runtimes.server.output_guard import GuardOptions, LoopGuard, TokenBudget

SMALL = GuardOptions(max_period=8, repeats=3, span=12)


def is_loop(tokens: list[int], options: GuardOptions) -> bool:
    """By the definition: the end of the text is one piece over and over."""
    for period in range(1, options.max_period + 1):
        span = max(period * options.repeats, options.span)
        tail = tokens[-span:]
        if len(tail) == span and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def test_a_loop_is_heard_when_the_definition_says_so() -> None:
    generator = np.random.default_rng(0)
    tokens: list[int] = []
    for _ in range(200):
        piece = generator.integers(0, 3, generator.integers(1, 10)).tolist()
        tokens += piece * int(generator.integers(1, 6))
    guard = LoopGuard(SMALL)
    heard = [guard.sees_loop(token) for token in tokens]
    assert heard == [is_loop(tokens[: at + 1], SMALL) for at in range(len(tokens))]
    assert 0 < sum(heard) < len(heard)


def test_every_period_is_heard_as_soon_as_it_has_come_often_enough() -> None:
    for period in range(1, 9):
        guard = LoopGuard(SMALL)
        at = next(n for n in range(1, 100) if guard.sees_loop(n % period))
        assert at == max(3 * period, 12)


def test_a_ruled_line_is_no_loop_by_default() -> None:
    guard = LoopGuard()
    assert not any(guard.sees_loop(token) for token in b"Title\n" + 79 * b"-" + b"\nThe text goes on.")


def test_nothing_is_heard_where_nothing_is_asked() -> None:
    guard = LoopGuard(GuardOptions(max_period=0))
    assert not any(guard.sees_loop(7) for _ in range(1000))


def test_a_budget_comes_back_over_a_minute() -> None:
    budget = TokenBudget(per_minute=60)
    for _ in range(60):
        assert budget.wait_s("a", 0.0) == 0
        budget.charge("a", 0.0)
    assert budget.wait_s("a", 0.0) == pytest.approx(1.0)
    assert budget.wait_s("b", 0.0) == 0
    assert budget.wait_s("a", 1.0) == 0
    assert budget.left("a", 3600.0) == 60


def test_tenants_with_a_whole_budget_are_forgotten() -> None:
    budget = TokenBudget(per_minute=5)
    for number in range(5000):
        budget.charge(f"tenant {number}", float(number))
    assert len(budget._left) <= 1024


def test_without_a_bound_nothing_is_counted() -> None:
    budget = TokenBudget()
    budget.charge("a", 0.0)
    assert budget.wait_s("a", 0.0) == 0
    assert not budget._left
