"""A stage of a rollout as one bar, and a guard's value beside its limit."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

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
WIDTH, HEIGHT = 300.0, 10


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
        return Markup('<span class="soft">nothing to judge by yet</span>')
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


def said(guard: Guard, value: float) -> str:
    """With its unit."""
    if guard.metric in LATENCIES:
        return number(value, "ms")
    unit = {"energy": "mJ", "temperature": "\N{DEGREE SIGN}C"}.get(guard.metric)
    return number(value, unit) if unit else percent(value)
