"""Where the time of a request went: every nanosecond of the whole is put down to one stage, so that they sum up.

At each moment the deepest span that was under way counts. Where two run beside each other (a hedge), the one that was
not given up counts, and of those the one that was waited for longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edgekit.runtimes.tracing.joining import Branch, Trace
from edgekit.runtimes.tracing.span import NS_PER_MS

Kind = Literal["compute", "codec", "queue", "link", "other"]

UNACCOUNTED = "unaccounted"

# Of spans without children, by name; others are stages of their own name.
_KINDS: dict[str, Kind] = {
    "preprocess": "compute",
    "head": "compute",
    "exit": "compute",
    "local": "compute",
    "compute": "compute",
    "postprocess": "compute",
    "encode": "codec",
    "decode": "codec",
    "queue": "queue",
    "pause": "queue",
    "connect": "link",
    "send": "link",
    "forward": "link",
}

# These hold others together: what is left of them is nobody's.
_CONTAINERS = ("request", "ask", "infer")

_HOPS = ("send", "forward")


@dataclass(frozen=True)
class Stage:
    """`where`: a tier, or `device → edge` for what the link between two took."""

    name: str
    where: str
    kind: Kind
    duration_ns: int

    @property
    def duration_ms(self) -> float:
        return self.duration_ns / NS_PER_MS


_Key = tuple[str, str, Kind]


def kind_of(branch: Branch) -> Kind:
    """What the time of this span that is none of its children's was spent on."""
    return "other" if branch.span.name in _CONTAINERS else _KINDS.get(branch.span.name, "other")


def stages(trace: Trace) -> list[Stage]:
    """In the order in which the request met them, unaccounted time last. Their durations sum to the root's."""
    root = trace.root
    spent: dict[_Key, int] = {}
    silent: dict[int, tuple[Branch, int]] = {}
    for start, end in pairwise(_moments(root)):
        branch = _deepest(root, start, end)
        if branch.span.name in _HOPS and not branch.children:
            silent[id(branch)] = branch, silent.get(id(branch), (branch, 0))[1] + end - start
            spent |= {key: spent.get(key, 0) for key, part in _silent_hop(branch, end - start) if part}
        else:
            key = _stage(branch, start, end)
            spent[key] = spent.get(key, 0) + end - start
    for branch, duration_ns in silent.values():
        for key, part in _silent_hop(branch, duration_ns):
            spent[key] = spent.get(key, 0) + part
    made = [Stage(*key, duration_ns) for key, duration_ns in spent.items() if duration_ns]
    return sorted(made, key=lambda stage: stage.name == UNACCOUNTED)


def _moments(root: Branch) -> list[int]:
    """When anything began or ended, within the root."""
    marks = {min(max(mark, root.start_ns), root.end_ns) for one in root.walk() for mark in (one.start_ns, one.end_ns)}
    return sorted(marks)


def _deepest(root: Branch, start: int, end: int) -> Branch:
    """Of what was under way throughout the interval, in which nothing begins or ends."""
    branch = root
    while True:
        active = [child for child in branch.children if child.start_ns <= start and child.end_ns >= end]
        if not active:
            return branch
        branch = max(active, key=lambda child: (not child.is_let_go, not child.span.is_error, child.end_ns))


def _stage(branch: Branch, start: int, end: int) -> _Key:
    name, tier = branch.span.name, branch.span.tier
    if name in _HOPS:
        before = all(end <= child.start_ns for child in branch.children)
        after = all(start >= child.end_ns for child in branch.children)
        if after and not before:
            return "downlink", _way(branch, back=True), "link"
        return "uplink" if before else "link", _way(branch), "link"
    if name in _CONTAINERS or branch.children:
        return UNACCOUNTED, tier, "other"
    kind = kind_of(branch)
    return name, _way(branch) if kind == "link" else tier, kind


def _way(branch: Branch, *, back: bool = False) -> str:
    above = branch.children[0].span.tier if branch.children else branch.span.attribute("node")
    ends = (branch.span.tier, str(above or "?"))
    return " → ".join(reversed(ends) if back else ends)


def _silent_hop(branch: Branch, duration_ns: int) -> Iterable[tuple[_Key, int]]:
    """An attempt whose node recorded nothing: its answer still says how long it waited there and was computed."""
    left = duration_ns
    where = str(branch.span.attribute("answered_by") or branch.span.attribute("node") or "?")
    named: tuple[tuple[str, Kind], ...] = (("queue", "queue"), ("compute", "compute"))
    for name, kind in named:
        said = branch.span.attribute(f"node_{name}_ms")
        part = min(left, round(said * NS_PER_MS)) if isinstance(said, int | float) and said > 0 else 0
        left -= part
        yield (name, where, kind), part
    yield ("link", _way(branch), "link"), left
