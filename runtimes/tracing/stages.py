"""Where the time of a request went: every nanosecond of the whole is put down to one stage, so that they sum up.

At each moment the deepest span that was under way counts. Where two run beside each other (a hedge), the one that was
not given up counts, and of those the one that was waited for longest. What a node does outside of its span (reading a
request off the wire, writing an answer) counts as the link's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    for branch, start, end in _shares(root):
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


def _shares(root: Branch) -> Iterator[tuple[Branch, int, int]]:
    """(branch, start, end), in order and without gaps: the deepest span that counts at each moment of the root."""
    waiting = [(root, root.start_ns, root.end_ns, False)]
    while waiting:
        branch, start, end, is_own = waiting.pop()
        if is_own or not branch.children:
            if end > start:
                yield branch, start, end
            continue
        pieces = reversed(_pieces(branch, start, end))
        waiting += [(one, first, last, one is branch) for one, first, last in pieces]


def _pieces(branch: Branch, start: int, end: int) -> list[tuple[Branch, int, int]]:
    """The time from `start` to `end` of `branch`, given to its children, or to itself where there is none."""
    marks = {start, end}
    begins: dict[int, list[Branch]] = {}
    for child in branch.children:
        first, last = max(child.start_ns, start), min(child.end_ns, end)
        if first < last:
            marks |= {first, last}
            begins.setdefault(first, []).append(child)
    pieces: list[tuple[Branch, int, int]] = []
    active: list[Branch] = []
    for here, after in pairwise(sorted(marks)):
        active = [child for child in active if child.end_ns > here] + begins.get(here, [])
        chosen = max(active, key=_claim) if active else branch
        if pieces and pieces[-1][0] is chosen:
            pieces[-1] = chosen, pieces[-1][1], after
        else:
            pieces.append((chosen, here, after))
    return pieces


def _claim(child: Branch) -> tuple[bool, bool, int]:
    """Of those that run beside each other, the largest counts."""
    return not child.is_let_go, not child.span.is_error, child.end_ns


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
