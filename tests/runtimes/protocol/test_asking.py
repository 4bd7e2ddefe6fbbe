from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.runtimes.protocol.asking import Asking


def test_nothing_asked_is_nothing_asked() -> None:
    assert Asking.of({}) == Asking() == Asking.of({"edgekit_plan": "x", "somebody_elses": -1})


def test_what_is_asked_is_read() -> None:
    asked = {
        "edgekit_top": 3,
        "edgekit_max_steps": 7,
        "edgekit_temperature": 1,
        "edgekit_seed": 0,
        "edgekit_stream": True,
    }
    assert Asking.of(asked) == Asking(top=3, max_steps=7, temperature=1.0, seed=0, stream=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("edgekit_top", 0),
        ("edgekit_top", True),
        ("edgekit_top", 2.0),
        ("edgekit_max_steps", -5),
        ("edgekit_max_steps", "5"),
        ("edgekit_max_steps", 1 << 63),
        ("edgekit_temperature", -0.1),
        ("edgekit_temperature", 101),
        ("edgekit_temperature", float("nan")),
        ("edgekit_temperature", float("inf")),
        ("edgekit_temperature", 10**400),
        ("edgekit_temperature", True),
        ("edgekit_temperature", "hot"),
        ("edgekit_seed", -1),
        ("edgekit_stream", 1),
        ("edgekit_stream", "true"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Asking.of({name: value})


def test_a_number_beyond_int64_is_told_the_largest_one() -> None:
    with pytest.raises(InputError, match="allowed an integer from 0 to 9223372036854775807"):
        Asking.of({"edgekit_seed": 1 << 63})
