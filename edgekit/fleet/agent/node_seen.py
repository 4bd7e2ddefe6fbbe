"""What a node of this machine did since it was last asked, from its metrics (Prometheus' text format)."""

from __future__ import annotations

import logging
import math
import re
import urllib.request
from collections.abc import Mapping

from edgekit.fleet.agent.tally import Tally
from edgekit.fleet.telemetry.histogram import bucket_of

logger = logging.getLogger("edgekit")

TIMEOUT_S = 5.0
MOST_BYTES = 4 << 20
LATE = "DeadlineError"  # edgekit.runtimes.protocol.status.error_kind

_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, tuple[tuple[str, str], ...]]


class NodeSeen:
    """`url`: http://host:port of the node's REST."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before: dict[Key, float] = {}

    def read(self) -> Tally:
        """Nothing where it does not answer now: what it did is told the next time. A node that was started again
        counts from zero, and so all that it says is new."""
        try:
            with urllib.request.urlopen(f"{self._url}/metrics", timeout=TIMEOUT_S) as answer:
                now = parse(answer.read(MOST_BYTES).decode(errors="replace"))
        except OSError as error:
            logger.debug("the node does not tell what it did: %s", error)
            return Tally()
        restarted = any(now.get(key, 0.0) < value for key, value in self._before.items())
        before = {} if restarted else self._before
        grown = {key: value - before.get(key, 0.0) for key, value in now.items()}
        self._before = now
        return tally_of(grown)


def parse(text: str) -> dict[Key, float]:
    """The counters of ours, by name and labels."""
    found: dict[Key, float] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or not match["name"].startswith("edgekit_"):
            continue
        if not match["name"].endswith(("_total", "_bucket")):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        if math.isfinite(value):
            found[match["name"], tuple(sorted(_LABEL.findall(match["labels"] or "")))] = value
    return found


def tally_of(grown: Mapping[Key, float]) -> Tally:
    tally = Tally()
    ladders: dict[str, dict[float, float]] = {}
    for (name, labels), value in grown.items():
        known = dict(labels)
        if name == "edgekit_requests_total":
            tally.answered += round(value)
        elif name == "edgekit_failures_total":
            tally.errors += round(value)
            tally.late += round(value) if known.get("kind") == LATE else 0
        elif name == "edgekit_request_seconds_bucket":
            ladders.setdefault(known.get("model", ""), {})[float(known["le"])] = value
    for ladder in ladders.values():
        for bucket, count in spread(ladder).items():
            tally.latency[bucket] = tally.latency.get(bucket, 0) + count
    return tally


def spread(ladder: Mapping[float, float]) -> dict[int, int]:
    """A cumulative histogram (upper bound in seconds -> how many at or below) as one of ours, in ms: what lies between
    two bounds is spread evenly over the buckets between them, as percentiles of such histograms assume anyway."""
    found: dict[int, int] = {}
    below, low = 0.0, None
    for bound in sorted(ladder):
        count = round(ladder[bound] - below)
        below = ladder[bound]
        high = bucket_of(1e3 * bound) if math.isfinite(bound) else None
        first = high if low is None else low + 1
        last = first if high is None else high
        if count > 0 and first is not None and last is not None:
            width = last - first + 1
            for place in range(width):
                share = (place + 1) * count // width - place * count // width
                if share:
                    found[first + place] = found.get(first + place, 0) + share
        low = high if high is not None else low
    return found
