"""Which devices a group holds: `board=rpi4,site!=lab,camera` (all must hold; a bare key asks for the label)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import UsageError

_TERM = re.compile(
    r"(?P<not>!?)(?P<key>[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)"
    r"(?:(?P<op>!?=)(?P<value>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?))?"
)


@dataclass(frozen=True)
class Term:
    """`value` None asks for the label itself. `wanted` False: must not hold."""

    key: str
    value: str | None
    wanted: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels if self.value is None else labels.get(self.key) == self.value
        return found == self.wanted


@dataclass(frozen=True)
class Selector:
    """Without terms it takes every device."""

    terms: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Raises UsageError."""
        terms = []
        for word in filter(None, (part.strip() for part in text.split(","))):
            match = _TERM.fullmatch(word)
            if match is None or (match["not"] and match["op"]):
                raise UsageError(
                    f"selector term {word!r:.80}, allowed key=value, key!=value, key and !key",
                    hint="board=rpi4,site!=lab",
                )
            terms.append(Term(match["key"], match["value"], not match["not"] and match["op"] != "!="))
        return cls(tuple(terms))

    def holds(self, labels: Mapping[str, str]) -> bool:
        return all(term.holds(labels) for term in self.terms)

    def __str__(self) -> str:
        words = []
        for term in self.terms:
            if term.value is None:
                words.append(term.key if term.wanted else f"!{term.key}")
            else:
                words.append(f"{term.key}{'=' if term.wanted else '!='}{term.value}")
        return ",".join(words)
