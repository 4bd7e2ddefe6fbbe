"""Quantities on the command line: `300ms`, `2s`, `20MB`, `15%`, or a bare number in its unit; `10mbps,20ms`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.output import Output

if TYPE_CHECKING:
    from edgekit.planning.link import Link

_TEXT = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>us|ms|s)?", re.IGNORECASE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>b|kb|mb|gb)?", re.IGNORECASE)
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


class Milliseconds(click.ParamType):
    """A time above zero, in ms where it has no unit."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _TEXT.fullmatch(str(value).strip())
        if match is None or float(match["number"]) <= 0:
            self.fail(f"{value!r} is no time above zero: give it like 300ms or 2s", param, ctx)
        return float(match["number"]) * _MS[(match["unit"] or "ms").lower()]


class Size(click.ParamType):
    """A size above zero, in bytes where it has no unit; decimal units."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None or float(match["number"]) <= 0:
            self.fail(f"{value!r} is no size above zero: give it like 800, 2kB or 20MB", param, ctx)
        return float(match["number"]) * _BYTES[(match["unit"] or "b").lower()]


class Share(click.ParamType):
    """Of 1: `15%` or `0.15`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no share of 1: give it like 15% or 0.15", param, ctx)
        return share


def read_link(out: Output, text: str, option: str) -> Link:
    """`10mbps,20ms`; a round trip that is left out is 0 ms, which `out` is told. Raises UsageError."""
    from edgekit.planning.link import Link

    link = Link.parse(text)
    if all(token.strip().lower().endswith(("bps", "%")) for token in text.split(",")):
        out.remark(f"note: {option} {text} gives no round-trip time: 0 ms assumed; write it like {text},20ms")
    return link
