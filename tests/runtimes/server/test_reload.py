"""Bundles that are exchanged while a node serves them: no request lost, the earlier one for those that ask for it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import MismatchError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.server import Node, Security
from edgekit.runtimes.server.schedule import Tenant
from edgekit.runtimes.server.tenants import Guest

X = np.ones((1, 6), np.float32)


def exchange(source: Path, target: Path) -> None:
    """As a careful writer does: beside it, then in its place."""
    beside = target.with_name("coming.edgekit")
    shutil.copytree(source, beside) if source.is_dir() else shutil.copy(source, beside)
    if target.is_dir():
        target.rename(target.with_name("gone"))
    beside.replace(target)


@pytest.fixture
def place(tmp_path: Path, split_bundle: Path) -> Path:
    path = tmp_path / "net.edgekit"
    exchange(split_bundle, path)
    return path


def tail(wish: Wish = Wish(), version: str = "") -> InferCall:
    return InferCall("net.tail", {"shifted": X}, wish.parameters(), version)


def answer(client: NodeClient, call: InferCall) -> np.ndarray:
    scores: np.ndarray = client.infer(call).tensors["scores"]
    return scores


def test_another_bundle_is_the_next_version_and_the_earlier_one_stays(
    place: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    node = serve(place, tier="cloud")
    with Bundle.open(split_bundle) as old, NodeClient(node.grpc_url) as client:
        before = answer(client, tail())
        assert [(one.version, one.error) for one in node.reload()] == [("", None)]
        exchange(other_bundle, place)
        assert [(one.version, one.error) for one in node.reload()] == [("2", None)]
        np.testing.assert_array_equal(answer(client, tail()), 2 * before)
        np.testing.assert_array_equal(answer(client, tail(Wish(bundle=old.digest))), before)
        np.testing.assert_array_equal(answer(client, tail(version="1")), before)


@pytest.mark.parametrize(("keep", "held"), [(0, ["3"]), (1, ["2", "3"])])
def test_what_was_served_before_is_the_newest_again_when_it_is_put_back(
    place: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node], keep: int, held: list[str]
) -> None:
    node = serve(place, tier="cloud", keep_versions=keep)
    with NodeClient(node.grpc_url) as client:
        before = answer(client, tail())
        for bundle in (other_bundle, split_bundle):
            exchange(bundle, place)
            node.reload()
        np.testing.assert_array_equal(answer(client, tail()), before)
        assert list(node.catalog.versions("net.tail")) == held
        assert [one.version for one in node.reload()] == [""]


def test_a_bundle_of_another_name_can_be_exchanged_back_by_the_name_that_was_asked_for_first(
    place: Path, split_bundle: Path, tmp_path: Path, make_split: Callable[..., Path], serve: Callable[..., Node]
) -> None:
    node = serve(place, tier="cloud", port=0, keep_versions=0)
    url = f"{node.rest_url}/v2/repository/models/net.tail/load"
    exchange(make_split(tmp_path / "made.edgekit", name="web"), place)
    said = httpx.post(url)
    assert said.status_code == 200 and {entry["version"] for entry in said.json()} == {"1"}, said.text
    exchange(split_bundle, place)
    said = httpx.post(url)
    assert said.status_code == 200, said.text
    assert {(entry["name"], entry["version"]) for entry in said.json()} >= {("net.tail", "2")}


def test_without_earlier_versions_the_old_one_is_gone(
    place: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    node = serve(place, tier="cloud", keep_versions=0)
    first = node.catalog.models
    exchange(other_bundle, place)
    node.reload()
    assert [model.version for model in node.catalog.models] == ["2", "2"]
    with Bundle.open(split_bundle) as old, NodeClient(node.grpc_url) as client:
        with pytest.raises(MismatchError):
            client.infer(tail(Wish(bundle=old.digest)))
        assert client.infer(tail()).version == "2"
    with pytest.raises(Exception, match="closing"):
        first[0].run([{"scaled": X}], float("inf"))


def test_a_damaged_bundle_changes_nothing(place: Path, serve: Callable[..., Node]) -> None:
    node = serve(place, tier="cloud")
    target = next(place.rglob("tail.onnx")) if place.is_dir() else place
    target.write_bytes(target.read_bytes()[:-40])
    [outcome] = node.reload()
    assert outcome.error is not None and outcome.error.exit_code == 9 and outcome.version == ""
    with NodeClient(node.grpc_url) as client:
        assert client.infer(tail()).version == "1"


def test_a_request_inside_is_answered_by_what_it_found(
    place: Path, other_bundle: Path, serve: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = serve(place, tier="cloud", keep_versions=0)
    model = node.catalog.find("net.tail")
    entered, leave, closed = threading.Event(), threading.Event(), threading.Event()
    run, close = model.run, model.close

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert leave.wait(10)
        return run(*arguments)

    monkeypatch.setattr(model, "run", slow)
    monkeypatch.setattr(model, "close", lambda: (closed.set(), close()))
    with ThreadPoolExecutor(1) as pool, NodeClient(node.grpc_url) as client:
        inside = pool.submit(client.infer, tail())
        assert entered.wait(10)
        exchange(other_bundle, place)
        node.reload()
        assert client.infer(tail()).version == "2"
        assert not closed.is_set()
        leave.set()
        assert inside.result(10).version == "1"
        assert closed.wait(10)


def test_no_request_is_lost_or_wrong_while_bundles_are_exchanged(
    place: Path, split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    node = serve(place, tier="cloud", keep_versions=0)
    stop, wrong, count = threading.Event(), [], [0] * 4

    def ask(number: int) -> None:
        with NodeClient(node.grpc_url) as client:
            while not stop.is_set():
                given = client.infer(tail())
                scale = 1 if int(given.version) % 2 else 2
                if not np.array_equal(given.tensors["scores"], scale * reference):
                    wrong.append(given)
                count[number] += 1

    with NodeClient(node.grpc_url) as client:
        reference = answer(client, tail())
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, number) for number in range(4)]
        for turn in range(6):
            shutil.rmtree(place.with_name("gone"), ignore_errors=True)
            exchange(split_bundle if turn % 2 else other_bundle, place)
            assert [one.version for one in node.reload()] == [str(turn + 2)]
        stop.set()
        for future in futures:
            future.result(20)
    assert not wrong and min(count) > 0


def test_the_repository_api_reloads_for_the_owner_alone(
    place: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    guests = (Guest(Tenant("a"), "guest"),)
    node = serve(place, tier="cloud", port=0, security=Security("owner", guests=guests))
    exchange(other_bundle, place)
    url = f"{node.rest_url}/v2/repository/models"
    for token, model, status in (("guest", "net.tail", 401), ("owner", "none", 404), ("owner", "net.tail", 200)):
        said = httpx.post(f"{url}/{model}/load", headers={"authorization": f"Bearer {token}"})
        assert said.status_code == status, said.text
    assert [entry["version"] for entry in said.json()] == ["1", "2"]
    place.rename(place.with_name("lost"))
    gone = httpx.post(f"{url}/net.tail/load", headers={"authorization": "Bearer owner"})
    assert gone.status_code == 500 and "net.edgekit" in gone.json()["error"]
