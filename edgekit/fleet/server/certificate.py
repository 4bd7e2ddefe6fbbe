"""The service's own certificate: of the fleet's authority, or files of the owner's, and in time a newer one."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import NodeError
from edgekit.fleet.trust.authority import Authority, span_of
from edgekit.fleet.trust.files import write_private

logger = logging.getLogger("edgekit")

RENEW_AT = 0.5  # of its life
LOOK_EVERY_S = 3600.0


class ServiceCertificate:
    """`given`: (chain, key) in PEM files of the owner's, None for one that `authority` gives for `names`. Whoever
    changes the files need not start the service again."""

    def __init__(
        self,
        authority: Authority,
        given: tuple[Path, Path] | None,
        names: tuple[str, ...],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises NodeError for files that cannot be used."""
        self._authority, self._names, self._now = authority, names, now
        self._is_own = given is None
        path = authority.certificate_path.with_name("service.pem")
        self.chain, self.key = given or (path, path)
        if self._is_own:
            self._make()
        self._check()
        self._seen = self._changed_at()

    def look(self, context: ssl.SSLContext) -> bool:
        """Whether `context` shows a newer one from now on. What cannot be used is told, and the one before stays."""
        try:
            if self._is_own and self._is_old():
                self._make()
            changed_at = self._changed_at()
            if changed_at == self._seen:
                return False
            self._seen = changed_at
            self._check()
            context.load_cert_chain(self.chain, self.key)
        except (NodeError, OSError, ValueError) as error:
            logger.error("the certificate stays the one before: %s", error)
            return False
        logger.info("a newer certificate is shown")
        return True

    def _make(self) -> None:
        """Certificate and key in one file, which is replaced in one step while other workers may read it."""
        pem, key = self._authority.issue_service(self._names)
        try:
            write_private(self.chain, f"{pem}{key}".encode())
        except OSError as error:
            raise NodeError(f"cannot write {self.chain}: {error.strerror}", hint="check the data folder") from error

    def _check(self) -> None:
        """In a context of its own: one that fails in the middle would leave halves of two. A key with a password fails
        here, instead of asking at a terminal that nobody watches."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise NodeError(f"the certificate cannot be used: {error}", hint="check --tls-files") from error

    def _is_old(self) -> bool:
        starts_at, ends_at = span_of(self.chain.read_bytes())
        return self._now() >= starts_at + RENEW_AT * (ends_at - starts_at)

    def _changed_at(self) -> tuple[int, int]:
        return self.chain.stat().st_mtime_ns, self.key.stat().st_mtime_ns


def own_names(host: str, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """By which this machine may be reached: those given, its host name, and its address on the way out."""
    found = [*names, host, socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: RFC 5737 keeps the address for examples
        found.append(probe.getsockname()[0])
    return tuple(dict.fromkeys(name for name in found if name not in ("0.0.0.0", "::") and name.isascii()))
