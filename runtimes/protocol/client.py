"""A gRPC client of one node: channel, token, certificates, calls; every failure as an edgekit error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from edgekit.errors import NodeError, UsageError
from edgekit.runtimes.loopback import is_loopback
from edgekit.runtimes.protocol.calls import InferAnswer, InferCall, answer_from_message, call_to_message
from edgekit.runtimes.protocol.messages import METHODS, stub
from edgekit.runtimes.protocol.status import from_grpc

MAX_MESSAGE_BYTES = 64 << 20

_TARGET = re.compile(r"(?P<scheme>grpcs?)://(?P<address>(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5})/?")


@dataclass(frozen=True)
class ClientOptions:
    """`token`: sent as a bearer. `ca`: whom a grpcs:// node's certificate must come from, the system's without.
    `certificate`: (certificate, key) files, for nodes that ask for one."""

    token: str = ""
    ca: Path | None = None
    certificate: tuple[Path, Path] | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES


class NodeClient:
    """`url` is grpc://host:port or grpcs://host:port. Connects at the first call; safe to use from several threads."""

    def __init__(self, url: str, options: ClientOptions = ClientOptions()) -> None:
        """Raises UsageError for another kind of address or a token in the clear, NodeError for certificate files
        that cannot be read."""
        self.url = url
        match = _TARGET.fullmatch(url)
        if match is None:
            raise UsageError(
                f"{url!r} is no address of a node", hint="give it like grpc://127.0.0.1:8102 or grpcs://edge:8102"
            )
        if options.token and match["scheme"] == "grpc" and not is_loopback(match["host"].strip("[]")):
            raise UsageError(
                f"a token for {url} would be sent in the clear", hint="use grpcs://, or an encrypted tunnel"
            )
        self._metadata = (("authorization", f"Bearer {options.token}"),) if options.token else ()
        settings = [
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Channels of one process that share connections would share each other's faults too.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if match["scheme"] == "grpcs":
            self.channel = grpc.secure_channel(match["address"], _credentials(options), settings)
        else:
            self.channel = grpc.insecure_channel(match["address"], settings)
        self._stubs = {name: stub(self.channel, name) for name in METHODS if name != "ModelStreamInfer"}

    def call(
        self,
        method: str,
        request: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """A unary method of the protocol with its messages; without a request, an empty one. Raises RemoteError and
        its children, InputError or CodecError, as the node says."""
        message = METHODS[method][0]() if request is None else request
        metadata = (*self._metadata, *(headers or {}).items())
        try:
            return self._stubs[method](message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise from_grpc(error, self.url) from error

    def infer(
        self, call: InferCall, *, timeout_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> InferAnswer:
        """Raises like `call`."""
        return answer_from_message(self.call("ModelInfer", call_to_message(call), timeout_s=timeout_s, headers=headers))

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _credentials(options: ClientOptions) -> Any:
    try:
        roots = options.ca.read_bytes() if options.ca else None
        pair = [path.read_bytes() for path in options.certificate] if options.certificate else [None, None]
    except OSError as error:
        raise NodeError(
            f"cannot read {error.filename}: {error.strerror}", hint="check the certificate's path"
        ) from error
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=pair[1], certificate_chain=pair[0])
