"""Templates to HTML. Everything is escaped unless it was made as markup here; a name that is missing is an error."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgekit.fleet.web import bars, cells, charts
from edgekit.fleet.web.wording import FILTERS, ROLLOUT_WORDS, STATE_WORDS

PART = "live_"  # of the names of blocks that change while somebody looks
STATIC = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True)
class Static:
    """`name` carries the hash of the content, so that a browser may keep it for ever."""

    name: str
    media_type: str
    content: bytes


@functools.cache
def statics() -> dict[str, Static]:
    """By the name in the package."""
    found = {}
    for plain, media_type in STATIC.items():
        content = files("edgekit.fleet.web").joinpath("static", plain).read_bytes()
        stem, _, ending = plain.partition(".")
        found[plain] = Static(f"{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{ending}", media_type, content)
    return found


def static_path(plain: str) -> str:
    return f"/static/{statics()[plain].name}"


@functools.cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("edgekit.fleet.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(FILTERS)
    made.globals.update(
        part=_part,
        static_path=static_path,
        state_words=STATE_WORDS,
        rollout_words=ROLLOUT_WORDS,
        member_words=bars.MEMBER_WORDS,
        fleet_map=cells.fleet_map,
        stage_bar=bars.stage_bar,
        guard_bar=bars.guard_bar,
        drift_bars=bars.drift_bars,
        time_chart=charts.time_chart,
    )
    return made


def draw_page(template: str, context: dict[str, Any]) -> str:
    return environment().get_template(template).render(_with_macros(context))


def draw_parts(template: str, context: dict[str, Any]) -> dict[str, str]:
    """The blocks that change while somebody looks, by their name; {} for a page without any."""
    found, context = environment().get_template(template), _with_macros(context)
    return {
        name.removeprefix(PART): "".join(block(found.new_context(context)))
        for name, block in found.blocks.items()
        if name.startswith(PART)
    }


def _with_macros(context: dict[str, Any]) -> dict[str, Any]:
    """`m`: the macros. A template's own imports are not there when one of its blocks is drawn alone."""
    return {**context, "m": environment().get_template("macros.html").make_module(context)}


def mark_of(text: str) -> str:
    """By which a part is known to be the same."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _part(name: str, text: str) -> Markup:
    """A block in its place on the page."""
    return Markup('<div data-part="{}" data-mark="{}">{}</div>').format(name, mark_of(text), Markup(text))
