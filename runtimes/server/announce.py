"""Nodes make themselves known on the local network, and are found there: DNS service discovery over multicast.

An announcement says where a node listens, for which tier, and the digests of its bundles; it proves nothing (tokens,
certificates and the digests in every frame do).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edgekit.errors import MissingExtraError, NodeError
from edgekit.runtimes.loopback import is_loopback

SERVICE_TYPE = "_edgekit._tcp.local."
MAX_BUNDLES = 16


@dataclass(frozen=True)
class Found:
    """A node that announces itself. `bundles`: digests."""

    name: str
    tier: str
    grpc_url: str
    bundles: tuple[str, ...]


class Announcement:
    """Stands until it is closed."""

    def __init__(self, tier: str, host: str, grpc_url: str, bundles: Sequence[str]) -> None:
        """Raises MissingExtraError, NodeError where the network takes no multicast."""
        zeroconf = _import()
        scheme, _, address = grpc_url.partition("://")
        port = int(address.rpartition(":")[2])
        texts = {"tier": tier, "scheme": scheme}
        texts |= {f"bundle{index}": digest for index, digest in enumerate(bundles[:MAX_BUNDLES])}
        self.name = f"edgekit-{tier}-{socket.gethostname().split('.')[0][:30]}-{port}"
        addresses = None if host in ("0.0.0.0", "::") else [host]
        info = zeroconf.ServiceInfo(
            SERVICE_TYPE,
            f"{self.name}.{SERVICE_TYPE}",
            port=port,
            properties=texts,
            server=f"{self.name}.local.",
            parsed_addresses=addresses or _own_addresses(),
        )
        try:
            self._zeroconf = zeroconf.Zeroconf(interfaces=addresses or zeroconf.InterfaceChoice.Default)
            self._zeroconf.register_service(info)
        except (OSError, zeroconf.Error) as error:
            raise NodeError(
                f"cannot announce this node: {error}", hint="leave --announce out and give addresses"
            ) from error

    def close(self) -> None:
        """Takes it back."""
        self._zeroconf.unregister_all_services()
        self._zeroconf.close()

    def __enter__(self) -> Announcement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def discover(
    timeout_s: float = 2.0, interfaces: Sequence[str] | None = None, at_least: int | None = None
) -> list[Found]:
    """The nodes that answer within `timeout_s`, or as soon as `at_least` of them have; by name.

    `interfaces`: addresses of this machine to ask on, every one without. Raises MissingExtraError, NodeError.
    """
    zeroconf = _import()
    found: dict[str, Found] = {}

    def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Removed":
            found.pop(name, None)
            return
        info = zeroconf.get_service_info(service_type, name, timeout=1000)
        if info is not None and info.parsed_addresses():
            found[name] = _read(name, info)

    try:
        with zeroconf.Zeroconf(interfaces=list(interfaces) if interfaces else zeroconf.InterfaceChoice.All) as asker:
            browser = zeroconf.ServiceBrowser(asker, SERVICE_TYPE, handlers=[changed])
            end = time.monotonic() + timeout_s
            while time.monotonic() < end and (at_least is None or len(found) < at_least):
                time.sleep(0.02)
            browser.cancel()
    except OSError as error:
        raise NodeError(f"cannot look for nodes: {error}", hint="give their addresses instead") from error
    return [found[name] for name in sorted(found)]


def _read(name: str, info: Any) -> Found:
    texts = {
        key.decode("ascii", "replace"): (value or b"").decode("ascii", "replace")
        for key, value in info.properties.items()
    }
    address = info.parsed_addresses()[0]
    shown = f"[{address}]" if ":" in address else address
    scheme = "grpcs" if texts.get("scheme") == "grpcs" else "grpc"
    bundles = tuple(texts[key] for key in sorted(texts) if key.startswith("bundle"))
    return Found(
        name.removesuffix(f".{SERVICE_TYPE}"), texts.get("tier", ""), f"{scheme}://{shown}:{info.port}", bundles
    )


def _own_addresses() -> list[str]:
    """The address towards the outside; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address: str = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    return [address] if not is_loopback(address) else ["127.0.0.1"]


def _import() -> Any:
    try:
        import zeroconf
    except ImportError as error:
        raise MissingExtraError("zeroconf", "remote", "finding nodes on the network") from error
    return zeroconf
