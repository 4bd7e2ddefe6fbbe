"""`edgekit fleet rollout`, `status`, `plan` and `insights`, over a real server and devices that follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

pytest.importorskip("sqlalchemy")

from edgekit.devices.segment import Segment
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.runtimes.listening import open_socket
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock
from tests.fleet.town import Town, push

Run = Callable[..., Result]
Told = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("told")
    work = {"model": 8e9, "head": 5e7, "tail": 8e9}
    segments = {part: (Segment(part, "conv", "fp32", flops, 4e6),) for part, flops in work.items()}
    return {
        "old": make_bundle(folder / "old", edge=True, segments=segments, as_directory=True),
        "new": make_bundle(folder / "new", scale=3.0, edge=True, segments=segments, as_directory=True),
    }


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Twelve devices of the group pi that run the old bundle."""
    service = FleetService(tmp_path / "data")
    town = Town(service, SettableClock(time.time()))
    for index in range(12):
        town.add(f"pi-{index}", profile="raspberry-pi-5", board="rpi4")
    town.group("pi", "board=rpi4")
    yield town
    service.close()


@pytest.fixture
def digests(town: Town, bundles: dict[str, Path]) -> dict[str, str]:
    return {name: push(town.service, path) for name, path in bundles.items()}


@pytest.fixture
def served(town: Town, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the fleet, which the commands find by the environment; devices look there all the time."""
    token = town.service.people.found()
    assert token is not None
    server, done = make_server(town.service, Listening(port=0)), threading.Event()

    def live() -> None:
        while not done.wait(0.1):
            town.follow()

    with open_socket("127.0.0.1", 0) as listener:
        threads = [
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True),
            threading.Thread(target=live, daemon=True),
        ]
        for thread in threads:
            thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("EDGEKIT_FLEET", url)
        monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", token)
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield url
        done.set()
        server.should_exit = True
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def lines(result: Result) -> list[str]:
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_a_rollout_is_watched_to_its_end(town: Town, digests: dict[str, str], served: str, invoke: Run) -> None:
    result = invoke("fleet", "rollout", digests["old"], "--group", "pi", "--canary", "10%", "--soak", "0")
    assert result.exit_code == 0
    assert "10 % of 12: 2 devices" in result.stderr
    text = lines(result)
    assert "state:    complete" in text and "devices:  12 right" in text
    assert [line for line in text if line.endswith("done")] == [
        "   1  10 % of 12: 2 devices       done",
        "   2  50 % of 12: 4 more devices  done",
        "   3  all 12: 6 more devices      done",
    ]
    assert max(map(len, text)) <= 80


def test_one_that_goes_back_tells_why_and_ends_with_17(
    town: Town, digests: dict[str, str], served: str, invoke: Run
) -> None:
    for thing in town.things.values():
        thing.answers[digests["new"]] = False
    result = invoke("fleet", "rollout", digests["new"], "--group", "pi", "--canary", "10%", "--soak", "0", code=17)
    assert "the rollout is rolled-back: 2 devices refused it" in result.stderr
    assert "because:  2 devices refused it or fell back; allowed 0: its golden answers are wrong" in lines(result)
    assert "   1  10 % of 12: 2 devices       ended here" in lines(result)
    assert "   2  50 % of 12: 4 more devices  not begun" in lines(result)


def test_json_holds_everything(town: Town, digests: dict[str, str], served: str, invoke_json: Told) -> None:
    made = invoke_json("fleet", "rollout", digests["old"], "--group", "pi", "--guard", "p95<=80ms", "--no-wait")
    view = made["rollout"]
    assert view["state"] == "running" and view["order"]["guards"] == "p95<=80ms" and len(view["stages"]) == 3
    assert set(view["tally"]) == {"waiting", "asked", "right", "wrong", "lost", "reverting", "reverted", "left"}
    paused = invoke_json("fleet", "pause", view["id"][:8])["rollout"]
    assert paused["state"] == "paused" and paused["reason"] == "paused by admin"
    status = invoke_json("fleet", "status")
    assert [one["id"] for one in status["rollouts"]] == [view["id"]] and status["insights"] == []
    assert invoke_json("fleet", "resume")["rollout"]["state"] == "running"
    assert invoke_json("fleet", "rollback")["rollout"]["state"] == "rolling-back"


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (("pause", "zzzz"), "'zzzz' is no rollout, allowed the id", "edgekit fleet status"),
        (("rollback", "no"), "'no' is no rollout, allowed the id", "edgekit fleet status"),
        (("groups", "set", "b d", "board=rpi4"), "'b d' is no name, allowed small letters", "plant-3"),
    ],
)
def test_names_that_cannot_be_are_told_in_words(
    served: str, invoke: Run, words: tuple[str, ...], says: str, hint: str
) -> None:
    result = invoke("fleet", *words, code=2)
    assert says in result.stderr and hint in result.stderr and "pattern" not in result.stderr


def test_a_group_of_nobody_is_told_with_what_would_make_it_one(
    town: Town, digests: dict[str, str], served: str, invoke: Run
) -> None:
    town.group("none", "board=other")
    result = invoke("fleet", "rollout", digests["old"], "--group", "none", code=2)
    assert "none is labelled board=other" in result.stderr and "devices label NAME KEY=VALUE" in result.stderr


def test_a_device_that_does_not_stand_out_is_told_from_one_that_is_not_there(served: str, invoke: Run) -> None:
    assert lines(invoke("fleet", "insights", "--device", "pi-7")) == ["nobody stands out"]
    assert "no device nobody" in invoke("fleet", "insights", "--device", "nobody", code=17).stderr


def test_a_bundle_that_is_sent_again_was_here(served: str, bundles: dict[str, Path], invoke: Run) -> None:
    assert "were new" in invoke("fleet", "push", str(bundles["old"])).stdout
    assert "which were here already" in invoke("fleet", "push", str(bundles["old"])).stdout


def test_lines_of_csv_and_json_do_not_mix(served: str, invoke: Run) -> None:
    assert "--csv FILE" in invoke("fleet", "telemetry", "--csv", "-", "--json", code=2).stderr
    assert invoke("fleet", "telemetry", "--csv", "-").stdout.startswith("device,sequence,")


def test_status_names_groups_rollouts_and_who_stands_out(
    town: Town, digests: dict[str, str], served: str, invoke: Run
) -> None:
    invoke("fleet", "rollout", digests["old"], "--group", "pi", "--steps", "100%", "--soak", "0")
    source = np.random.default_rng(1)
    for name in town.things:
        for _ in range(4):
            slow = 3.0 if name == "pi-7" else 1.0
            town.window(name, digests["old"], latencies=(20 * slow * source.lognormal(0, 0.2, 40)).tolist())
    wait_for(town.everything_is_stored)
    town.service.insights.catch_up()
    text = lines(invoke("fleet", "status"))
    assert "devices:  12, all connected" in text
    assert any(line.startswith("pi          12         12  12 x ") for line in text)
    found = [line for line in text if line.startswith("pi-7")]
    assert len(found) == 2 and all("suspect: p" in line and "its 11 peers'" in line for line in found)
    assert lines(invoke("fleet", "insights", "--device", "pi-7"))[1:] == found
    assert lines(invoke("fleet", "insights", "--kind", "drift")) == ["nobody stands out"]


def test_status_still_tells_what_ended_while_something_else_goes_on(
    town: Town, digests: dict[str, str], served: str, invoke: Run, invoke_json: Told
) -> None:
    invoke("fleet", "rollout", digests["old"], "--group", "pi", "--steps", "100%", "--soak", "0")
    invoke("fleet", "rollout", digests["new"], "--group", "pi", "--canary", "10%", "--soak", "900", "--no-wait")
    text = lines(invoke("fleet", "status"))
    (row,) = [line for line in text if line.endswith("complete")]
    assert f"@sha256:{digests['old'][:12]}  pi" in row and "state:    running" in text
    told = invoke_json("fleet", "status")
    assert [one["bundle"] for one in told["rollouts"]] == [digests["new"]]
    assert [one["bundle"] for one in told["ended"]] == [digests["old"]]


def test_rollouts_are_listed_the_newest_first_and_one_is_shown_whole(
    town: Town, digests: dict[str, str], served: str, invoke: Run, invoke_json: Told
) -> None:
    for name in ("old", "new"):
        invoke("fleet", "rollout", digests[name], "--group", "pi", "--steps", "100%", "--soak", "0")
    listed = invoke("fleet", "rollouts", "--limit", "1")
    newest = lines(listed)[1]
    assert f"@sha256:{digests['new'][:12]}  pi" in newest and newest.endswith("complete")
    assert len(lines(listed)) == 2 and "more: --after" in listed.stderr
    told = invoke_json("fleet", "rollouts")
    assert [one["bundle"] for one in told["rollouts"]] == [digests["new"], digests["old"]] and told["next"] is None
    shown = invoke("fleet", "rollouts", told["rollouts"][1]["id"][:8])
    assert "state:    complete" in lines(shown) and f"@sha256:{digests['old'][:12]}" in shown.stdout
    assert "no rollout abcd1234" in invoke("fleet", "rollouts", "abcd1234", code=17).stderr


def test_a_plan_tells_link_latency_choice_and_why(
    town: Town, digests: dict[str, str], served: str, invoke: Run, invoke_json: Told
) -> None:
    invoke("fleet", "rollout", digests["old"], "--group", "pi", "--steps", "100%", "--soak", "0")
    early = invoke("fleet", "plan", "pi-1")
    assert early.exit_code == 0 and "no link was measured in the last hour" in early.stderr
    for _ in range(4):
        town.window("pi-1", digests["old"], latencies=[25.0] * 20, link=(50.0, 8.0, 0.0), plan="split")
    wait_for(town.everything_is_stored)
    shown = invoke("fleet", "plan", "pi-1")
    assert "link:       50 Mbit/s, 8 ms, 0 % lost (median of 4 windows)" in lines(shown)
    assert "plan:       none told" in lines(shown) and "best now" in shown.stdout
    assert "--replan tells it split, rate" in shown.stderr
    told = invoke("fleet", "plan", "pi-1", "--replan")
    assert any(line.startswith("plan:       split, rate") for line in lines(told))
    assert any(line.startswith("because:    ") and "local" in line for line in lines(told))
    assert [line for line in lines(told) if line.endswith("told")]
    view = invoke_json("fleet", "plan", "pi-1")["plan"]
    assert view["order"]["variant"] == "split" and view["link"]["windows"] == 4 and len(view["choices"]) == 2


REFUSED = (
    (("rollout", "nothing", "--group", "pi"), 17, "no bundle nothing"),
    (("rollout", "net", "--group", "nobody"), 17, "no group nobody"),
    (("rollout", "net", "--group", "pi", "--guard", "speed<=1"), 2, "watches 'speed'"),
    (("rollout", "net", "--group", "pi", "--guard", "agreement>=0.9"), 2, "no group sends requests"),
    (("rollout", "net", "--group", "pi", "--steps", "50%,10%"), 2, "shares that rise to 1"),
    (("rollout", "net", "--group", "pi", "--canary", "0%"), 2, "allowed above 0 up to 100%"),
    (("rollout", "net", "--group", "pi", "--canary", "1%", "--steps", "1%,100%"), 2, "give one of them"),
    (("pause",), 17, "no rollout latest"),
    (("rollback", "abcdef"), 17, "no rollout abcdef"),
    (("plan", "nobody"), 17, "no device nobody"),
    (("plan", "pi-1", "--replan"), 17, "it runs nothing"),
)


def test_what_cannot_be_is_told_without_a_traceback(
    town: Town, digests: dict[str, str], served: str, invoke: Run
) -> None:
    for words, code, said in REFUSED:
        result = invoke("fleet", *words, code=code)
        assert said in result.stderr and "Traceback" not in result.stderr
