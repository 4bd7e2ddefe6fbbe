"""Spans of several machines as one tree on one time axis.

Two machines share no clock. A span's children on another machine lie inside it in truth; where they do not as written,
the other clock is off, and is moved so that the child lies in the middle of the span that waited for it: the estimate
of Cristian ("Probabilistic clock synchronization", 1989, section 3) and of NTP (RFC 5905, section 8), off by half of
what the child leaves of its parent at most. A clock that is off by less than that room cannot be told from a right one,
and is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgekit.runtimes.tracing.span import NS_PER_MS, Span

# Within one machine, wall clock and monotonic clock are read one after the other: no more is made of less.
TOLERANCE_NS = 100_000

LET_GO = "let go"


@dataclass
class Branch:
    """A span in its place: `start_ns` and `end_ns` on the root's clock, `children` by their start."""

    span: Span
    start_ns: int
    end_ns: int
    depth: int = 0
    children: list[Branch] = field(default_factory=list)

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / NS_PER_MS

    @property
    def is_let_go(self) -> bool:
        """Begun, and no longer waited for when it ended."""
        return bool(self.span.attribute("outcome") == LET_GO)

    def self_intervals(self) -> list[tuple[int, int]]:
        """What no child covers, in order."""
        free, at = [], self.start_ns
        for child in sorted(self.children, key=lambda child: child.start_ns):
            start, end = max(child.start_ns, at), min(child.end_ns, self.end_ns)
            if start > at:
                free.append((at, min(start, self.end_ns)))
            at = max(at, end)
        return [*free, (at, self.end_ns)] if at < self.end_ns else free

    @property
    def self_ms(self) -> float:
        return sum(end - start for start, end in self.self_intervals()) / NS_PER_MS

    def walk(self) -> Iterator[Branch]:
        """Itself and all below, parents first."""
        waiting = [self]
        while waiting:
            branch = waiting.pop()
            yield branch
            waiting += reversed(branch.children)


@dataclass(frozen=True)
class ClockOffset:
    """`offset_ms` was added to the times of `process`; right within `uncertainty_ms`, None where nothing bounds it."""

    process: str
    tier: str
    offset_ms: float
    uncertainty_ms: float | None


@dataclass(frozen=True)
class Trace:
    """`root` is the whole of the request; `others` are spans whose parent is in no file that was read."""

    trace_id: str
    root: Branch
    others: tuple[Branch, ...] = ()
    clocks: tuple[ClockOffset, ...] = ()

    def branches(self) -> Iterator[Branch]:
        for branch in (self.root, *self.others):
            yield from branch.walk()

    @property
    def total_ms(self) -> float:
        return self.root.duration_ms

    @property
    def tiers(self) -> tuple[str, ...]:
        """In the order in which the request reached them."""
        first: dict[str, int] = {}
        for branch in self.branches():
            first[branch.span.tier] = min(branch.start_ns, first.get(branch.span.tier, branch.start_ns))
        return tuple(sorted(first, key=lambda tier: first[tier]))

    def attribute(self, name: str) -> object:
        """Of the span nearest to the root that has it, None without one."""
        found = (branch.span.attribute(name) for branch in sorted(self.branches(), key=lambda branch: branch.depth))
        return next((value for value in found if value is not None), None)

    @property
    def status(self) -> str:
        """ok, degraded, or the kind of the error that the request ended with."""
        if self.root.span.is_error:
            return self.root.span.status.partition(":")[0]
        return "degraded" if self.attribute("degraded") else "ok"


def join(spans: Iterable[Span]) -> dict[str, Trace]:
    """By trace id, the earliest first. A span that was read twice counts once."""
    by_trace: dict[str, dict[str, Span]] = defaultdict(dict)
    for span in spans:
        by_trace[span.trace_id].setdefault(span.span_id, span)
    traces = {trace_id: _join_one(trace_id, held) for trace_id, held in by_trace.items()}
    return dict(sorted(traces.items(), key=lambda entry: entry[1].root.start_ns))


def _join_one(trace_id: str, spans: Mapping[str, Span]) -> Trace:
    below: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans.values():
        below[span.parent_id if span.parent_id in spans else None].append(span)
    roots = below.pop(None, [])
    reached = {span.span_id for root in roots for span in _descend(root, below)}
    while len(reached) < len(spans):  # parents in a ring: damaged or forged, cut at the earliest
        first = min((span for key, span in spans.items() if key not in reached), key=lambda span: span.start_ns)
        below[first.parent_id].remove(first)
        roots.append(first)
        reached |= {span.span_id for span in _descend(first, below)}
    # The device's span is the whole, then the longest.
    roots.sort(key=lambda span: (span.tier != "device", -span.duration_ms, span.start_ns))
    clocks = _clocks(roots[0], below)
    moved = {clock.process: round(clock.offset_ms * NS_PER_MS) for clock in clocks}
    branches = [_branch(root, below, moved) for root in roots]
    return Trace(trace_id, branches[0], tuple(sorted(branches[1:], key=lambda one: one.start_ns)), tuple(clocks))


def _descend(root: Span, below: Mapping[str | None, list[Span]]) -> Iterator[Span]:
    waiting = [root]
    while waiting:
        span = waiting.pop()
        yield span
        waiting += below.get(span.span_id, ())


def _branch(root: Span, below: Mapping[str | None, list[Span]], moved: Mapping[str, int]) -> Branch:
    def place(span: Span, depth: int) -> Branch:
        shift = moved.get(span.process, 0)
        return Branch(span, span.start_ns + shift, span.end_ns + shift, depth)

    top = place(root, 0)
    waiting = [top]
    while waiting:
        branch = waiting.pop()
        under = [place(span, branch.depth + 1) for span in below.get(branch.span.span_id, ())]
        branch.children = sorted(under, key=lambda child: (child.start_ns, child.end_ns))
        waiting += branch.children
    return top


def _clocks(root: Span, below: Mapping[str | None, list[Span]]) -> list[ClockOffset]:
    """Of the processes that were moved, from the root's outwards."""
    pairs: dict[str, list[tuple[Span, Span]]] = defaultdict(list)
    order: list[str] = []
    waiting = [root]
    while waiting:
        span = waiting.pop(0)
        for child in below.get(span.span_id, ()):
            if child.process != span.process:
                pairs[child.process].append((span, child))
                order.append(child.process)
            waiting.append(child)
    offsets: dict[str, int] = {root.process: 0}
    found: list[ClockOffset] = []
    for process in dict.fromkeys(order):
        if process in offsets:
            continue
        known = [
            (parent, child, offsets[parent.process]) for parent, child in pairs[process] if parent.process in offsets
        ]
        if not known:
            continue
        offset, uncertainty = _offset(known)
        offsets[process] = offset
        if offset:
            within = None if uncertainty is None else uncertainty / NS_PER_MS
            found.append(ClockOffset(process, known[0][1].tier, offset / NS_PER_MS, within))
    return found


def _offset(pairs: list[tuple[Span, Span, int]]) -> tuple[int, int | None]:
    """What to add to the child's clock, and how far that may be off; (parent, child, the parent's own offset)."""
    bounds = [
        (parent.start_ns + shift - child.start_ns, parent.end_ns + shift - child.end_ns)
        for parent, child, shift in pairs
        # A parent that stopped waiting says nothing of when its child ended.
        if not parent.is_error and parent.attribute("outcome") != LET_GO and child.duration_ms <= parent.duration_ms
    ]
    if not bounds:
        parent, child, shift = pairs[0]
        early = parent.start_ns + shift - child.start_ns
        late = parent.end_ns + shift - child.start_ns
        return (0, 0) if early <= TOLERANCE_NS and late >= -TOLERANCE_NS else (early, None)
    lowest, highest = max(low for low, _ in bounds), min(high for _, high in bounds)
    if lowest - TOLERANCE_NS <= 0 <= highest + TOLERANCE_NS:
        return 0, 0
    low, high = min(bounds, key=lambda bound: bound[1] - bound[0])
    return (low + high) // 2, (high - low) // 2
