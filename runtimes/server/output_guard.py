"""What keeps generators from running on: a bound for each answer, an ear for repetition, a budget for each tenant.

A prompt can be made to be answered at the greatest length (the attack that BenchOverflow measures), and a greedy
generator that has fallen into a loop does so by itself; both take the time of everybody else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GuardOptions:
    """A generation ends as a loop where its last tokens are one piece of up to `max_period` tokens, `repeats` times or
    more and over `span` tokens or more. `max_period` 0: never."""

    max_period: int = 64
    repeats: int = 4
    span: int = 96


class LoopGuard:
    """Of one generation. A token costs a pass over `max_period` numbers, however long the text is.

    `_run[p - 1]` counts how many tokens in a row equal the one p places before them: a text of period p over n tokens
    has n - p of them.
    """

    def __init__(self, options: GuardOptions = GuardOptions()) -> None:
        periods = np.arange(1, options.max_period + 1)
        self._needed = np.maximum(periods * options.repeats, options.span) - periods
        self._least = int(self._needed.min(initial=options.span))
        self._run = np.zeros(options.max_period, np.int64)
        # The last tokens, the newest first, are the `max_period` from `_at` on; all lies there twice, so that they
        # never wrap round.
        self._ring = np.full(2 * options.max_period, -1, np.int64)
        self._at = 0
        self._differs = np.empty(options.max_period, bool)

    def sees_loop(self, token: int) -> bool:
        """Takes the next token; True where the text now goes round in a loop."""
        size = self._run.size
        if not size:
            return False
        np.not_equal(self._ring[self._at : self._at + size], token, out=self._differs)
        self._run += 1
        np.putmask(self._run, self._differs, 0)
        self._at = (self._at - 1) % size
        self._ring[self._at] = self._ring[self._at + size] = token
        return bool(self._run.max() >= self._least and (self._run >= self._needed).any())


class TokenBudget:
    """Tokens a minute for each tenant; what was not used stays for a minute. Not safe to use from several threads.

    Tokens are charged as they come, so that nobody has to say beforehand how long an answer will be.
    """

    def __init__(self, per_minute: float = math.inf) -> None:
        self.per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def left(self, tenant: str, now_s: float) -> float:
        allowance, counted_s = self._left.get(tenant, (self.per_minute, now_s))
        return min(self.per_minute, allowance + self.per_minute * (now_s - counted_s) / 60)

    def charge(self, tenant: str, now_s: float) -> None:
        if not math.isinf(self.per_minute):
            self._left[tenant] = (self.left(tenant, now_s) - 1, now_s)
            self._forget(now_s)

    def wait_s(self, tenant: str, now_s: float) -> float:
        """0 where there is a token left; else until there is one."""
        left = 1.0 if math.isinf(self.per_minute) else self.left(tenant, now_s)
        return max(0.0, (1 - left) * 60 / self.per_minute)

    def _forget(self, now_s: float) -> None:
        """A tenant whose budget is whole again is as good as unknown: strangers' names must not pile up."""
        if len(self._left) > 1024:
            full = [tenant for tenant, (_, counted_s) in self._left.items() if now_s - counted_s >= 60]
            for tenant in full:
                del self._left[tenant]
