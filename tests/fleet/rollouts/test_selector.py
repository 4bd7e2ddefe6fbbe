"""Selectors: what they take, what they refuse, and that they read back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.fleet.rollouts.selector import Selector

KEYS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
TERMS = st.one_of(
    st.builds("{}={}".format, KEYS, VALUES),
    st.builds("{}!={}".format, KEYS, VALUES),
    KEYS,
    st.builds("!{}".format, KEYS),
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("board=rpi4", True),
        ("board=rpi5", False),
        ("board!=rpi5", True),
        ("board!=rpi4", False),
        ("site!=lab", True),
        ("camera", True),
        ("microphone", False),
        ("!microphone", True),
        ("!camera", False),
        ("board=rpi4,camera,site!=lab", True),
        ("board=rpi4, camera , site=lab", False),
        ("board=RPI4", False),
    ],
)
def test_all_terms_must_hold(text: str, holds: bool) -> None:
    assert Selector.parse(text).holds({"board": "rpi4", "camera": "v2"}) is holds


@pytest.mark.parametrize(
    "text", ["=x", "board==rpi4", "!board=rpi4", "board=", "a b", "Board=x", "board=a/b", "x" * 65]
)
def test_what_is_no_term_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="allowed key=value"):
        Selector.parse(text)


@given(st.lists(TERMS, max_size=6).map(",".join))
def test_a_selector_reads_back_as_it_was(text: str) -> None:
    found = Selector.parse(text)
    assert Selector.parse(str(found)) == found


@given(st.dictionaries(KEYS, VALUES, max_size=5), KEYS, VALUES)
def test_a_term_and_its_opposite_never_agree(labels: dict[str, str], key: str, value: str) -> None:
    assert Selector.parse(f"{key}={value}").holds(labels) != Selector.parse(f"{key}!={value}").holds(labels)
    assert Selector.parse(key).holds(labels) != Selector.parse(f"!{key}").holds(labels)
