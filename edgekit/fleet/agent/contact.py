"""The fleet as a device asks it: with its certificate, which is renewed in time, and only for what is vouched for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgekit.errors import EdgekitError, SignatureError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import ROOT, Identity, authority_of, certificate_of, load_identity
from edgekit.fleet.client import AgentClient, Connection
from edgekit.fleet.client.agents import MOST_BYTES
from edgekit.fleet.protocol.agents import Desired, Sync
from edgekit.fleet.protocol.bundles import Offer

logger = logging.getLogger("edgekit")

METADATA = "trust"  # of the agent's folder
LOOK_EVERY_S = 3600.0  # at the certificate
SKEW_S = 300.0  # more than this is told


class DeviceClient(AgentClient):
    """`identity`: read from the folder without. `now`: seconds since 1970."""

    def __init__(self, home: Home, identity: Identity | None = None, now: Callable[[], float] = time.time) -> None:
        """Raises UsageError for a folder that is not enrolled, or whose certificate cannot be used."""
        self._home, self._now = home, now
        self._identity = identity or load_identity(home)
        self._look_at = 0.0
        self._told_skew = False
        self.connection = self._connect()

    def _connect(self) -> Connection:
        found = self._identity
        authority, certificate = authority_of(self._home), certificate_of(self._home)
        return Connection(found.fleet, found.token, authority, certificate, most_bytes=MOST_BYTES)

    def sync(self, sync: Sync) -> Desired:
        """Renews the certificate first, where that is due; where it cannot be done, tries again later."""
        self._renew_in_time()
        desired = super().sync(sync)
        self._tell_skew()
        return desired

    def _renew_in_time(self) -> None:
        now = self._now()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        try:
            if not self.renew_if_due():
                return
        except EdgekitError as error:
            logger.warning("the certificate is not renewed yet: %s", error.message)
            return
        logger.info("the certificate is renewed")
        self.connection.close()
        self.connection = self._connect()

    def renew_if_due(self) -> bool:
        """Whether there is a new certificate, which counts from the next connection on. Raises like `renew`."""
        from edgekit.fleet.agent.enrolment import is_renewal_due, renew

        if not is_renewal_due(self._home, self._now()):
            return False
        renew(self._home, self, self._identity.name)
        return True

    def _tell_skew(self) -> None:
        skew = self.connection.skew_s
        if abs(skew) <= SKEW_S:
            self._told_skew = False
        elif not self._told_skew:
            self._told_skew = True
            logger.warning(
                "this device's clock is %.0f s %s that of the fleet; certificates and signed metadata are judged by "
                "it: set it (timedatectl)",
                abs(skew),
                "ahead of" if skew > 0 else "behind",
            )

    def index(self, digest: str) -> Offer:
        """Only where the fleet's signed metadata names it. Raises SignatureError, OutputError, and as before."""
        from edgekit.fleet.agent.trusted import Trusted, vouched

        try:
            root = (self._home.path / ROOT).read_bytes()
        except OSError as error:
            raise SignatureError(
                f"the root of trust cannot be read: {error.strerror}", hint="edgekit agent enroll --again"
            ) from error
        trusted = Trusted(self._home.path / METADATA, root, self.metadata)
        return vouched(trusted, f"{digest}/index.json", lambda: super(DeviceClient, self).index(digest))
