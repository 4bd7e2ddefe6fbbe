"""Fleets for an agent to follow, without a network: the files of bundles by their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier
from edgekit.errors import BundleError, UnreachableError
from edgekit.fleet.agent.trial import Verdict
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Desired, Sync
from edgekit.fleet.protocol.bundles import Offer


class LocalFleet(AgentClient):
    """`bundles`: folders. `desired`: what each sync is answered with. `cut_after`: bytes of files that go through
    before the network drops, None for all."""

    def __init__(self, *bundles: Path) -> None:
        self.offers: dict[str, Offer] = {}
        self.files: dict[str, bytes] = {}
        self.desired = Desired(generation=1)
        self.syncs: list[Sync] = []
        self.sent: list[tuple[str, int, int]] = []  # (hash, from which byte, how many)
        self.chunk = 1500
        self.cut_after: int | None = None
        self.is_down = False
        self.hook: Callable[[str], None] = lambda what: None
        for bundle in bundles:
            self.add(bundle)

    def add(self, bundle: Path) -> str:
        signature = bundle / "signature.json"
        digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
        self.offers[digest] = Offer(
            index=(bundle / "index.json").read_text(), signature=signature.read_text() if signature.exists() else ""
        )
        for file in bundle.rglob("*"):
            if file.is_file():
                self.files[hashlib.sha256(file.read_bytes()).hexdigest()] = file.read_bytes()
        return digest

    def sync(self, sync: Sync) -> Desired:
        self._check()
        self.hook("sync")
        self.syncs.append(sync)
        return self.desired

    def index(self, digest: str) -> Offer:
        self._check()
        return self.offers[digest]

    def blob(self, sha256: str, start: int = 0) -> Iterator[bytes]:
        self._check()
        data = self.files[sha256][start:]
        went = 0
        try:
            for at in range(0, len(data), self.chunk):
                chunk = data[at : at + self.chunk]
                if self.cut_after is not None:
                    if self.cut_after < len(chunk):
                        raise UnreachableError("the network dropped")
                    self.cut_after -= len(chunk)
                went += len(chunk)
                yield chunk
        finally:
            self.sent.append((sha256, start, went))

    def _check(self) -> None:
        if self.is_down:
            raise UnreachableError("there is no network")

    def close(self) -> None:
        pass


def trial(slot: Path, tier: Tier) -> Verdict:
    """The bundle verified as the real trial does it, in this process; a name that begins with `wrong` answers so."""
    try:
        with Bundle.open(slot) as bundle:
            if bundle.manifest.name.startswith("wrong"):
                return Verdict(4, 1, "it answers wrong")
            return Verdict(4, 4, "")
    except BundleError as error:
        return Verdict(0, 0, error.message, damaged=True)
