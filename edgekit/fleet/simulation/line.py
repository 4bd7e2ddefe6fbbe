"""One kept connection to the service: HTTP/1.1 with bodies of known length or in chunks, one request at a time."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

import httptools

from edgekit.errors import UnreachableError

MOST_BYTES = 64 << 20  # of an answer


class _Answers(asyncio.Protocol):
    """Feeds what comes to the parser, and ends the future of the request that waits."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._keep = True
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    @property
    def is_open(self) -> bool:
        return self.transport is not None and self._keep and not self.transport.is_closing()

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self.transport is not None and self._waiting is None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fail(UnreachableError(f"the connection broke: {exc or 'it was closed'}", hint="does the fleet run?"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(UnreachableError(f"this is no HTTP: {error}", hint="does the fleet run there?"))
            self.close()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        self._body.append(body)
        if self._size > MOST_BYTES:
            self._fail(UnreachableError(f"an answer has more than {MOST_BYTES} bytes"))
            self.close()

    def on_message_complete(self) -> None:
        self._keep = self._parser.should_keep_alive()
        found = (self._parser.get_status_code(), b"".join(self._body))
        self._body, self._size = [], 0
        self._parser = httptools.HttpResponseParser(self)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(found)

    def _fail(self, error: UnreachableError) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Line:
    """`host`, `port`: of the service. Opened at the first call, and again after it broke."""

    def __init__(self, host: str, port: int, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port, self.tls = host, port, tls
        self._answers: _Answers | None = None
        self.token = token

    async def call(self, method: str, path: str, body: bytes = b"", timeout_s: float = 60.0) -> tuple[int, bytes]:
        """(status, body). Raises UnreachableError where nothing answers in time; the connection is then closed."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        if self.token:
            head += f"Authorization: Bearer {self.token}\r\n"
        try:
            return await asyncio.wait_for(self._ask(f"{head}\r\n".encode() + body), timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            self.close()
            raise UnreachableError(f"no answer within {timeout_s:g} s", hint="is the fleet overloaded?") from None
        except OSError as error:
            self.close()
            raise UnreachableError(f"no connection: {error.strerror or error}", hint="does the fleet run?") from error
        except BaseException:
            self.close()
            raise

    async def _ask(self, data: bytes) -> tuple[int, bytes]:
        if self._answers is None or not self._answers.is_open:
            loop = asyncio.get_running_loop()
            _, self._answers = await loop.create_connection(_Answers, self._host, self._port, ssl=self.tls)
        return await self._answers.ask(data)

    def close(self) -> None:
        answers, self._answers = self._answers, None
        if answers is not None:
            answers.close()
