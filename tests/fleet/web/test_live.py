from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from edgekit.errors import AbsentError, OverloadedError
from edgekit.fleet.protocol.people import Role
from edgekit.fleet.server import live as live_module
from edgekit.fleet.server.live import MOST_EACH, Live, Parts
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.server.sessions import SIGNED_IN
from edgekit.fleet.service import FleetService
from edgekit.fleet.web.drawing import mark_of
from edgekit.runtimes.listening import open_socket
from tests.fleet.web.scene import Visitor, enroll, group

FAST_S = 0.005


async def yes() -> bool:
    return True


def parts_of(event: str) -> dict[str, str]:
    """Name -> HTML of an event of parts."""
    data = json.loads(event.split("data: ", 1)[1])
    assert all(mark == mark_of(text) for mark, text in data.values())
    return {name: text for name, (_, text) in data.items()}


def drawing(*frames: Parts) -> Callable[[], object]:
    """Draws each in turn, the last for ever."""
    left = list(frames)

    async def draw() -> Parts:
        return left.pop(0) if len(left) > 1 else left[0]

    return draw


async def some(stream: AsyncIterator[str], count: int) -> list[str]:
    found = []
    async for event in stream:
        found.append(event)
        if len(found) == count:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found


def test_only_parts_that_are_others_are_sent() -> None:
    async def body() -> list[str]:
        draw = drawing({"a": "1", "b": "x"}, {"a": "1", "b": "x"}, {"a": "2", "b": "x"})
        return await some(Live(FAST_S).stream("ada", "/", draw, yes), 3)  # type: ignore[arg-type]

    first, all_parts, changed = asyncio.run(body())
    assert first.startswith("retry: ")
    assert parts_of(all_parts) == {"a": "1", "b": "x"} and parts_of(changed) == {"a": "2"}


def test_what_the_browser_has_already_is_not_sent_at_the_beginning() -> None:
    async def body() -> list[str]:
        draw = drawing({"a": "1", "b": "x"}, {"a": "1", "b": "y"})
        return await some(Live(FAST_S).stream("ada", "/", draw, yes, [mark_of("1")]), 2)  # type: ignore[arg-type]

    assert parts_of(asyncio.run(body())[1]) == {"b": "x"}


def test_a_large_part_is_sent_the_less_often() -> None:
    large = ["x" * 100_000 + str(turn) for turn in range(50)]

    async def body() -> list[str]:
        draw = drawing(*({"map": text, "tally": str(turn)} for turn, text in enumerate(large)))
        return await some(Live(FAST_S).stream("ada", "/", draw, yes), 12)  # type: ignore[arg-type]

    sent = [parts_of(event) for event in asyncio.run(body())[1:]]
    assert "map" in sent[0] and not any("map" in one for one in sent[1:])
    assert all("tally" in one for one in sent)


def test_a_stream_ends_with_the_sign_in() -> None:
    answers = [True, False]

    async def still() -> bool:
        return answers.pop(0)

    async def body() -> list[str]:
        return await some(Live(FAST_S).stream("ada", "/", drawing({"a": "1"}), still), 9)  # type: ignore[arg-type]

    assert asyncio.run(body())[-1].startswith("event: over")


def test_a_stream_ends_where_what_it_shows_is_gone() -> None:
    async def gone() -> Parts:
        raise AbsentError("no device pi-1")

    async def body() -> list[str]:
        return await some(Live(FAST_S).stream("ada", "/", gone, yes), 9)

    assert len(asyncio.run(body())) == 1


def test_streams_of_one_address_share_one_drawing() -> None:
    drawn = 0

    async def draw() -> Parts:
        nonlocal drawn
        drawn += 1
        return {"a": "1"}

    async def body() -> None:
        live = Live(30.0)
        streams = [live.stream(f"p{place}", "/", draw, yes) for place in range(8)]
        for stream in streams:
            await stream.__anext__()
        for event in await asyncio.gather(*(stream.__anext__() for stream in streams)):
            assert parts_of(event) == {"a": "1"}
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(body())
    assert drawn == 1


def test_streams_are_bounded_for_one_sign_in_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        live = Live(30.0)
        held = [live.stream("ada", f"/{place}", drawing({}), yes) for place in range(MOST_EACH)]  # type: ignore[arg-type]
        for stream in held:
            live.admit("ada")
            await stream.__anext__()
        with pytest.raises(OverloadedError):
            live.admit("ada")
        live.admit("bob")
        monkeypatch.setattr(live_module, "MOST_STREAMS", MOST_EACH)
        with pytest.raises(OverloadedError):
            live.admit("bob")
        for stream in held:
            await stream.aclose()  # type: ignore[attr-defined]
        live.admit("ada")
        assert live.streams == 0

    asyncio.run(body())


def events(response: httpx.Response) -> Iterator[dict[str, str]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield parts_of(line)


def test_a_change_arrives_on_the_open_page_and_the_stream_ends_when_the_service_stops(
    service: FleetService, token: str
) -> None:
    enroll(service, "pi-1", board="rpi4")
    key = service.sign_ins.begin(token)
    server = make_server(service, Listening(port=0))
    with open_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/groups"
        headers = {"Accept": "text/event-stream", "Cookie": f"{SIGNED_IN}={key}"}
        with httpx.stream("GET", address, headers=headers, timeout=20) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            found = events(response)
            assert "None yet" in next(found)["groups"]
            group(service, "pi-lab")
            assert "/groups/pi-lab" in next(found)["groups"]
            server.should_exit = True
            assert list(found) == []  # a stream that is cut off raises here
        thread.join(20)
    assert not thread.is_alive()


def test_whoever_is_not_signed_in_gets_no_stream(stranger: Visitor) -> None:
    answer = stranger.get("/", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 204 and not answer.content


def test_a_stream_of_what_a_role_may_not_see_is_refused(somebody: Callable[[Role], Visitor]) -> None:
    viewer = somebody("viewer")
    assert viewer.get("/people", headers={"Accept": "text/event-stream"}).status_code == 403
