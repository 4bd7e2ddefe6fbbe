"""What stands between callers and Ray's proxy, before applications that behave as the proxy does when replicas go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import pytest

from edgekit.runtimes.ray_engine.answer import MARK, Answer, Marked, Message
from edgekit.runtimes.ray_engine.patience import MAX_SENDS
from edgekit.runtimes.ray_engine.retry import RETRIES, ProxyOptions, RetryLost, deadline_of, middlewares

Step = Callable[[bytes, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Proxy:
    """Goes through `steps`, one a sending, the last again and again; remembers the bodies that it was sent."""

    def __init__(self, *steps: Step) -> None:
        self.steps, self.bodies = steps, list[bytes]()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await self.steps[min(len(self.bodies), len(self.steps)) - 1](body, receive, send)


def answers(
    status: int = 200, body: bytes = b"fine", marked: bool = True, stated: int | None = None, **headers: str
) -> Step:
    async def step(got: bytes, receive: Any, send: Any) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        pairs += [(MARK.encode(), b"one")] if marked else []
        pairs.append((b"content-length", str(len(body) if stated is None else stated).encode()))
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    return step


async def vanishes(got: bytes, receive: Any, send: Any) -> None:
    """What Ray's proxy does when a replica dies: nothing more."""


async def breaks_off(got: bytes, receive: Any, send: Any) -> None:
    headers = [(MARK.encode(), b"one"), (b"content-length", b"100")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


def ask(
    proxy: Any,
    body: Sequence[bytes] = (b"x",),
    *,
    path: str = "/v2/models/m/infer",
    max_bytes: int = 1000,
    retry_s: float = 5.0,
    leaves: bool = False,
) -> tuple[Answer, int]:
    """The answer, and how many messages it took; `leaves`: the caller hangs up when all is sent."""
    answer, sent = Answer(), 0

    async def run() -> None:
        nonlocal sent
        chunks = list(body)

        async def receive() -> Message:
            if chunks:
                chunk = chunks.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
            if not leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal sent
            sent += 1
            await answer.take(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"a", b"b")]}
        await RetryLost(proxy, ProxyOptions(max_bytes, 10.0, retry_s))(scope, receive, send)

    asyncio.run(run())
    return answer, sent


def said(answer: Answer) -> str:
    return str(json.loads(bytes(answer.body))["error"])


def test_a_whole_answer_passes_as_it_is() -> None:
    proxy = Proxy(answers(body=b"result", x="y"))
    answer, sent = ask(proxy, [b"ab", b"", b"cd"])
    assert (answer.status, bytes(answer.body), sent) == (200, b"result", 2)
    assert answer.headers["x"] == "y" and RETRIES not in answer.headers
    assert proxy.bodies == [b"abcd"]


@pytest.mark.parametrize(
    "lost",
    [
        vanishes,
        breaks_off,
        answers(500, marked=False),
        answers(503, marked=False),
        answers(200, b"short", stated=9),
        answers(503, b"{}", edgekit_error="NodeError"),
        answers(503, b"{}", edgekit_error="UnreachableError"),
    ],
)
def test_what_was_lost_is_sent_again_whole(lost: Step) -> None:
    proxy = Proxy(lost, answers(body=b"second"))
    answer, _ = ask(proxy, [b"ab", b"cd"])
    assert (answer.status, bytes(answer.body), answer.headers[RETRIES]) == (200, b"second", "1")
    assert proxy.bodies == [b"abcd", b"abcd"]


@pytest.mark.parametrize(
    ("status", "kind"), [(500, "SessionError"), (504, "DeadlineError"), (400, "InputError"), (429, "OverloadedError")]
)
def test_an_error_that_a_replica_answered_is_an_answer(status: int, kind: str) -> None:
    proxy = Proxy(answers(status, b"{}", edgekit_error=kind), answers())
    answer, _ = ask(proxy)
    assert (answer.status, answer.headers["edgekit-error"], len(proxy.bodies)) == (status, kind, 1)


def test_a_request_that_kills_its_replica_does_not_go_through_all_of_them() -> None:
    proxy = Proxy(vanishes)
    answer, _ = ask(proxy)
    assert len(proxy.bodies) == MAX_SENDS
    assert (answer.status, answer.headers["edgekit-error"]) == (503, "UnreachableError")
    assert "gone" in said(answer)


def test_where_no_replica_is_there_it_waits_for_one_within_its_time() -> None:
    gone = answers(503, b"deployment unavailable", marked=False)
    patient = Proxy(*[gone] * (MAX_SENDS + 1), answers(body=b"at last"))
    answer, _ = ask(patient)
    assert bytes(answer.body) == b"at last" and len(patient.bodies) == MAX_SENDS + 2
    hasty = Proxy(gone)
    answer, _ = ask(hasty, retry_s=0.0)
    assert (answer.status, len(hasty.bodies)) == (503, 1)
    assert "deployment unavailable" in said(answer)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(429, "OverloadedError", 429), (408, "DeadlineError", 504), (404, "MismatchError", 409)],
)
def test_what_ray_says_itself_takes_the_protocols_form(status: int, kind: str, code: int) -> None:
    proxy = Proxy(answers(status, b"no", marked=False, retry_after="7"))
    answer, _ = ask(proxy)
    assert (answer.status, answer.headers["edgekit-error"], len(proxy.bodies)) == (code, kind, 1)
    assert said(answer)
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_a_body_over_the_cap_reaches_no_replica() -> None:
    proxy = Proxy(answers())
    answer, _ = ask(proxy, [b"x" * 600, b"x" * 600])
    assert answer.status == 413 and "1000 bytes" in said(answer)
    assert proxy.bodies == []
    answer, _ = ask(proxy, [b"x" * 1000])
    assert answer.status == 200


def test_nothing_is_sent_again_for_a_caller_that_has_gone() -> None:
    async def waits(got: bytes, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"

    proxy = Proxy(waits, answers())
    _, sent = ask(proxy, leaves=True)
    assert (sent, len(proxy.bodies)) == (0, 1)


def test_a_deadline_binds_ray_too_and_ends_the_sending() -> None:
    told: list[float] = []

    async def proxy(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        told.append(float(dict(scope["headers"])[b"x-request-timeout-seconds"]))
        await answers(503, b"nobody", marked=False)(b"", receive, send)

    answer, _ = ask(proxy, [json.dumps({"parameters": {"edgekit_deadline_ms": 200}}).encode()])
    assert answer.status == 503
    assert told == sorted(told, reverse=True) and 0 < told[-1] <= told[0] <= 0.2


@pytest.mark.parametrize(
    ("body", "length", "deadline_ms"),
    [
        (b'{"parameters": {"edgekit_deadline_ms": 12.5}}', b"", 12.5),
        (b'{"parameters": {"edgekit_deadline_ms": 40}}\x00\xff', b"43", 40.0),
        (b'{"parameters": {}}', b"", None),
        (b'{"parameters": {"edgekit_deadline_ms": "soon"}}', b"", None),
        (b'{"parameters": {"edgekit_deadline_ms": -1}}', b"", None),
        (b"edgekit_deadline_ms", b"", None),
        (b'["edgekit_deadline_ms"]', b"", None),
        (b'{"edgekit_deadline_ms": 1}', b"9999999", None),
    ],
)
def test_a_deadline_is_read_where_the_protocol_has_it(body: bytes, length: bytes, deadline_ms: float | None) -> None:
    headers = [(b"Inference-Header-Content-Length", length)] if length else []
    assert deadline_of(body, {"headers": headers}) == deadline_ms


def test_no_replica_exchanges_its_model_alone() -> None:
    proxy = Proxy(answers())
    answer, _ = ask(proxy, path="/v2/repository/models/m/load")
    assert answer.status == 400 and "as a whole" in said(answer)
    assert proxy.bodies == []


def test_rays_own_paths_pass_untouched() -> None:
    proxy = Proxy(answers(500, b"unhealthy", marked=False))
    answer, _ = ask(proxy, path="/-/healthz")
    assert (answer.status, bytes(answer.body), len(proxy.bodies)) == (500, b"unhealthy", 1)


def test_a_replica_marks_what_it_answers() -> None:
    answer = Answer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        raise AssertionError("not read")

    asyncio.run(Marked(app, "abc")({"type": "http"}, receive, answer.take))
    assert answer.headers == {MARK: "abc"} and answer.is_ours and answer.is_whole


def test_rays_proxy_loads_it_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ProxyOptions(123, 4.5, 6.75)
    settings = options.environment()
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (found,) = middlewares()
    assert found.cls is RetryLost and found.kwargs == {"options": options}
    module, _, name = settings["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)
