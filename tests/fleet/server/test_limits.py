from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgekit.fleet.registry.intake import MAX_BUNDLE_BYTES
from edgekit.fleet.server.limits import Limits
from edgekit.fleet.service import FleetService

Message = dict[str, Any]


async def echo(scope: Message, receive: Any, send: Any) -> None:
    """Answers with how many bytes came, and in how many pieces."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            pieces.append(b"gone")
            break
        pieces.append(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=1")]})
    said = {"bytes": sum(map(len, pieces)), "pieces": len(pieces)}
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def call(
    bodies: list[bytes | float], headers: dict[str, str] | None = None, path: str = "/json", **settings: Any
) -> tuple[int, dict[bytes, bytes], Any]:
    """`bodies`: pieces, and seconds of silence between them. The status, the headers and the answer."""
    sent: list[Message] = []
    left = list(bodies)

    async def receive() -> Message:
        while left and isinstance(left[0], float):
            await asyncio.sleep(left.pop(0))  # type: ignore[arg-type]
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    held = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "PUT", "path": path, "headers": held}
    limits = Limits(echo, lambda method, path: path == "/file", **settings)
    asyncio.run(limits(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


def test_a_body_comes_whole() -> None:
    status, _, said = call([b"ab", b"cd", b""])
    assert (status, said) == (200, {"bytes": 4, "pieces": 1})


@pytest.mark.parametrize(
    ("bodies", "headers", "said_so"),
    [([b"x" * 60, b"y" * 60], {}, "more than 100 bytes"), ([b"x"], {"content-length": "101"}, "allowed 100")],
    ids=["counted", "told"],
)
def test_one_that_is_too_long_is_refused_and_the_connection_ends(
    bodies: list[bytes | float], headers: dict[str, str], said_so: str
) -> None:
    status, answered, said = call(bodies, headers, most_bytes=100)
    assert status == 413 and said_so in said["error"]
    assert answered[b"connection"] == b"close"


def test_one_that_does_not_come_is_given_up() -> None:
    status, _, said = call([b"x", 5.0, b"y"], body_s=0.05)
    assert status == 408 and "0.05 s" in said["error"]


def test_files_are_streamed_whatever_their_size_and_given_up_when_they_stand_still() -> None:
    assert call([b"x" * 60, b"y" * 60], path="/file", most_bytes=100)[2] == {"bytes": 120, "pieces": 2}
    assert call([b"x", 5.0, b"y"], path="/file", piece_s=0.05)[2] == {"bytes": 5, "pieces": 2}


def test_every_answer_bears_the_safe_headers_and_keeps_its_own() -> None:
    _, headers, _ = call([b""])
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"cache-control"] == b"max-age=1"
    _, headers, _ = call([b"x" * 200], most_bytes=100)
    assert headers[b"cache-control"] == b"no-store"


def test_a_file_larger_than_any_bundle_is_not_begun(http: TestClient, served: FleetService) -> None:
    sha256 = "a" * 64
    refused = http.put(f"/v1/blobs/{sha256}", params={"at": 0, "size": MAX_BUNDLE_BYTES + 1}, content=b"x" * 1000)
    assert refused.status_code == 422 and served.core.blobs.received(sha256) == 0
    begun = http.put(f"/v1/blobs/{sha256}", params={"at": 0, "size": MAX_BUNDLE_BYTES}, content=b"x" * 1000)
    assert begun.json() == {"received": 1000, "complete": False}
