"""A real repository of The Update Framework, and what somebody in between may serve of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.trust.keys import ROLES, Algorithm, KeyFolder, make_signer
from edgekit.fleet.trust.repository import Repository, target_of, target_path

DIGEST, OTHER = "ab" * 32, "cd" * 32
OFFER = Offer(index='{"files": "of the bundle"}', signature='{"signature": "of the index"}')


class Publisher:
    """`files`: what is served, by name; an attack changes them. `ago_s`: how long ago everything is signed."""

    def __init__(self, folder: Path, algorithm: Algorithm = "ed25519") -> None:
        self.keys = KeyFolder(folder)
        self.ago_s = 0.0
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        signers = {role: make_signer(algorithm) for role in ROLES}
        for role, signer in signers.items():
            self.keys.keep(role, signer)
        self.repository = Repository({}, self.keys, self.now)
        self.repository.begin(signers)
        self.serve()
        self.root = self.repository.bodies["root"]

    def now(self) -> float:
        return time.time() - self.ago_s

    def serve(self) -> None:
        """What was published last, beside what was before."""
        for role, body in self.repository.bodies.items():
            name = "timestamp.json" if role == "timestamp" else f"{self.repository.version(role)}.{role}.json"
            self.files[name] = body

    def add(self, digest: str = DIGEST, offer: Offer = OFFER) -> None:
        target = target_of(digest, offer.index, offer.signature)
        self.repository.publish(self.repository.change_targets({target_path(digest): target}))
        self.serve()

    def rotate(self, role: str) -> None:
        found = next(one for one in ROLES if one == role)
        signer = make_signer()
        self.keys.keep(found, signer)
        self.repository = Repository(self.repository.bodies, self.keys, self.now, (signer,))
        self.repository.publish(self.repository.change_key(found, signer.public_key))
        self.serve()

    def get(self, name: str) -> Iterator[bytes]:
        self.asked.append(name)
        if name not in self.files:
            raise AbsentError(f"no {name}", hint="none")
        data = self.files[name]
        yield from (data[at : at + 1000] for at in range(0, len(data), 1000))
