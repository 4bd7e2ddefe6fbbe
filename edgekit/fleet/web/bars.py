"""A stage of a rollout as one bar, a guard's value beside its limit, and a histogram before and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgekit.fleet.protocol.insights import Finding
from edgekit.fleet.protocol.rollouts import GuardView
from edgekit.fleet.rollouts.guards import LATENCIES, Guard, parse_guards
from edgekit.fleet.web.wording import number, percent

# In the order in which they stand in a bar.
MEMBER_WORDS = {
    "right": "right",
    "asked": "on their way",
    "wrong": "wrong",
    "lost": "lost",
    "reverting": "on their way back",
    "reverted": "went back",
    "waiting": "waiting",
    "left": "left",
}
WIDTH, HEIGHT, TALL = 300.0, 10, 60


def stage_bar(states: Mapping[str, int]) -> Markup:
    total = sum(states.values())
    words = ", ".join(f"{states[state]:,} {word}" for state, word in MEMBER_WORDS.items() if states.get(state))
    drawn, x = [], 0.0
    for state, word in MEMBER_WORDS.items():
        if states.get(state):
            length = WIDTH * states[state] / total
            drawn.append(
                f'<rect class="m-{state}" x="{x:.2f}" width="{length:.2f}" height="{HEIGHT}">'
                f"<title>{states[state]:,} {word}</title></rect>"
            )
            x += length
    return Markup(
        '<svg class="bar" viewBox="0 0 {:g} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, words or "no devices", Markup("".join(drawn)))


def guard_bar(view: GuardView) -> Markup:
    """A bar from 0 to the value, and a stroke at the limit; where the limit is a multiple of what others show, words
    alone."""
    guard = parse_guards(view.text)[0]
    if view.value is None:
        return Markup('<span class="soft">{}</span>').format(view.why or "nothing to judge by yet")
    words = f"{said(guard, view.value)}, limit {view.text}"
    if guard.relative:
        return Markup("<span>{}</span>").format(said(guard, view.value))
    top = max(view.value, guard.limit) * 1.25 or 1.0
    kind = {True: "right", False: "wrong", None: "waiting"}[view.holds]
    return Markup(
        '<svg class="bar" viewBox="0 0 {0:g} {1}" preserveAspectRatio="none" role="img" aria-label="{2}">'
        '<title>{2}</title><rect class="m-none" width="{0:g}" height="{1}"/>'
        '<rect class="m-{3}" width="{4:.1f}" height="{1}"/>'
        '<path class="limit" d="M{5:.1f} 0v{1}"/></svg> <span>{6}</span>'
    ).format(
        WIDTH, HEIGHT, words, kind, WIDTH * view.value / top, WIDTH * guard.limit / top, said(guard, view.value)
    )  # fmt: skip


def drift_bars(finding: Finding) -> Markup:
    """For each bin what it held at first, and what it holds lately."""
    room = WIDTH / max(1, len(finding.now))
    top = max((*finding.before, *finding.now, 1e-9))
    drawn = []
    for place, (before, now) in enumerate(zip(finding.before, finding.now, strict=True)):
        words = f"{_bin(finding.edges, place)}: {percent(before)} at first, {percent(now)} now"
        columns = "".join(
            f'<path class="{kind}" d="M{room * (place + at):.1f} {TALL}v-{TALL * share / top:.1f}" '
            f'stroke-width="{room * 0.34:.1f}"/>'
            for kind, at, share in (("was", 0.3, before), ("is", 0.68, now))
        )
        drawn.append(f"<g><title>{words}</title>{columns}</g>")
    return Markup('<svg class="drift" viewBox="0 0 {:g} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, TALL, f"shares of {finding.metric} at first and now: {finding.text}", Markup("".join(drawn))
    )


def _bin(edges: Sequence[float], place: int) -> str:
    """Bin 0 ends at the first edge, the last begins at the last one."""
    if not edges:
        return "all"
    if place == 0:
        return f"up to {number(edges[0])}"
    return (
        f"over {number(edges[-1])}" if place >= len(edges) else f"{number(edges[place - 1])} to {number(edges[place])}"
    )


def said(guard: Guard, value: float) -> str:
    """With its unit."""
    if guard.metric in LATENCIES:
        return number(value, "ms")
    unit = {"energy": "mJ", "temperature": "\N{DEGREE SIGN}C"}.get(guard.metric)
    return number(value, unit) if unit else percent(value)
