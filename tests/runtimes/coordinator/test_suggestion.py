"""A plan that somebody who knows more suggests: where auto starts from."""

from __future__ import annotations

from edgekit.planning.link import Link
from edgekit.runtimes.coordinator.policies import Auto
from tests.runtimes.coordinator.test_policies import situation


def test_auto_starts_from_what_was_suggested_and_goes_on_by_itself() -> None:
    near = situation(link=Link(100, 5))
    unasked = Auto().choose(near).legs[0].variant
    assert unasked != "local"
    auto = Auto()
    auto.suggest("local")
    chosen = [auto.choose(near).legs[0].variant for _ in range(6)]
    assert chosen[0] == "local" and chosen[-1] == unasked
    auto.suggest("unknown")
    assert auto.choose(near).legs[0].variant == unasked
