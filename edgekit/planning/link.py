"""A Link between two tiers: how long bytes take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import UsageError

_TOKEN = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>kbps|mbps|gbps|us|ms|s|%)", re.IGNORECASE)
_MBPS = {"kbps": 1e-3, "mbps": 1.0, "gbps": 1e3}
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Link:
    """`bandwidth_mbps` in each direction (10^6 bit/s), `rtt_ms` there and back without load, `loss` 0 to 1."""

    bandwidth_mbps: float
    rtt_ms: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if not (self.bandwidth_mbps > 0 and self.rtt_ms >= 0 and 0 <= self.loss < 1):
            raise UsageError(
                f"link of {self.bandwidth_mbps} Mbit/s, {self.rtt_ms} ms and loss {self.loss}, "
                "allowed bandwidth above 0, round-trip time from 0, loss from 0 to below 1"
            )

    @classmethod
    def parse(cls, text: str) -> Link:
        """`10mbps,20ms` or `500kbps,80ms,1%`: bandwidth, round-trip time, loss. Raises UsageError."""
        found: dict[str, float] = {}
        for token in text.split(","):
            match = _TOKEN.fullmatch(token.strip())
            if match is None:
                raise UsageError(f"link {text!r}: {token!r} is not a quantity", hint="like 10mbps,20ms or 1gbps,2ms,1%")
            number, unit = float(match["number"]), match["unit"].lower()
            if unit in _MBPS:
                name, value = "bandwidth", number * _MBPS[unit]
            elif unit in _MS:
                name, value = "round-trip time", number * _MS[unit]
            else:
                name, value = "loss", number / 100
            if name in found:
                raise UsageError(f"link {text!r} gives its {name} twice", hint="like 10mbps,20ms")
            found[name] = value
        if "bandwidth" not in found:
            raise UsageError(f"link {text!r} has no bandwidth", hint="give it like 10mbps,20ms")
        return cls(found["bandwidth"], found.get("round-trip time", 0.0), found.get("loss", 0.0))

    def transfer_ms(self, size_bytes: float) -> float:
        """The bytes at full rate, without any delay; what is lost is sent again until it arrives."""
        return 8e-3 * size_bytes / (self.bandwidth_mbps * (1 - self.loss))

    def one_way_ms(self, size_bytes: float) -> float:
        """From the first byte sent to the last received: half the round trip and the transfer."""
        return self.rtt_ms / 2 + self.transfer_ms(size_bytes)

    def __str__(self) -> str:
        loss = f", {100 * self.loss:g} %" if self.loss else ""
        return f"{self.bandwidth_mbps:g} Mbit/s, {self.rtt_ms:g} ms{loss}"
