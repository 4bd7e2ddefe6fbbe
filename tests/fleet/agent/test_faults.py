"""Real agents of a real fleet over a wire that is cut, a server that dies, disks that are full or cannot be written."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.errors import OutputError, RemoteError
from edgekit.fleet.agent.assembly import _tier
from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.errand import FrugalClient
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.slots import is_whole
from edgekit.fleet.agent.update import Updater
from edgekit.runtimes.protocol.frames import model_name
from tests.fleet.acting import push
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.agent.live import LiveFleet, Wire, agent_process, free_ports, until
from tests.fleet.bundles import make_bundle


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A bundle of 3 MB, nearly all of it in one file."""
    return make_bundle(tmp_path / "large", scale=7.0, padding=3_000_000, as_directory=True)


@pytest.fixture
def updater(home: Home, bundles: dict[str, Path], digests: dict[str, str]) -> Updater:
    updater = Updater(home, "device", NoRuntime(), trial)
    updater.start()
    updater.follow(LocalFleet(*bundles.values()), digests["old"])
    updater.heard()
    return updater


def test_wire_that_is_cut_again_and_again_costs_nothing_twice(
    updater: Updater, live: LiveFleet, wire: Wire, large: Path
) -> None:
    digest = push(live.service, large).digest
    live.enroll(updater.home, url=wire.url)
    client = DeviceClient(updater.home)
    sizes: list[int] = []
    for _ in range(40):
        wire.bytes_left = 400_000
        try:
            updater.follow(client, digest)
            break
        except RemoteError:
            sizes.append(sum(path.stat().st_size for path in updater.home.part.iterdir()))
            assert updater.state.active is not None and updater.state.active != digest
    client.close()
    assert updater.state.active == digest and wire.cuts >= 7
    assert sizes == sorted(sizes) and len(sizes) <= 12  # every try went on from where the last one ended


def test_server_that_dies_in_the_middle_of_a_download_is_found_again(
    updater: Updater, live: LiveFleet, large: Path
) -> None:
    digest = push(live.service, large).digest
    live.enroll(updater.home)
    client = DeviceClient(updater.home)
    blob, died = client.blob, threading.Event()

    def dying(sha256: str, start: int = 0) -> Iterator[bytes]:
        for chunk in blob(sha256, start):
            yield chunk
            if not died.is_set() and len(chunk) > 10_000:
                died.set()
                live.hang_up()

    client.blob = dying  # type: ignore[method-assign]
    with pytest.raises(RemoteError):
        updater.follow(client, digest)
        updater.follow(client, digest)
    assert died.is_set() and updater.state.active != digest
    live.listen()
    for _ in range(3):
        with contextlib.suppress(RemoteError):
            updater.follow(client, digest)
    client.close()
    assert updater.state.active == digest


def test_errands_answer_as_the_client_itself_does(home: Home, live: LiveFleet, digests: dict[str, str]) -> None:
    live.enroll(home)
    frugal, plain = FrugalClient(home), DeviceClient(home)
    try:
        assert frugal.index(digests["old"]) == plain.index(digests["old"])
        assert not frugal.renew_if_due()
        errors = []
        for client in (frugal, plain):
            with pytest.raises(Exception) as caught:
                client.index("f" * 64)
            errors.append((type(caught.value), caught.value.message))  # type: ignore[attr-defined]
        assert errors[0] == errors[1]
    finally:
        frugal.close()
        plain.close()


def test_agent_with_a_damaged_identity_answers_all_the_same(
    updater: Updater, digests: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (updater.home.path / "identity.json").write_text("{")
    assert _tier(updater.home, lambda text: None) == "device"
    assert "what counts runs, and the fleet is not asked" in caplog.text
    with agent_process(updater.home) as process:
        time.sleep(1.5)
        assert process.poll() is None


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A small file system in memory; skips where this may not mount."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; tests/fleet/agent/test_power.py raises the same errors")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_disk_that_is_really_full_keeps_the_old_bundle_answering(
    tmp_path: Path, bundles: dict[str, Path], digests: dict[str, str], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.fleet.agent.slots.ROOM_BYTES", -(1 << 40))  # it is found out by writing
    with mounted(tmp_path / "small", 1_500_000) as folder:
        home = Home(folder / "home")
        home.make()
        updater = Updater(home, "device", NoRuntime(), trial)
        updater.start()
        fleet = LocalFleet(large, *bundles.values())
        fleet.chunk = 100_000
        updater.follow(fleet, digests["old"])
        for _ in range(3):
            with pytest.raises(OutputError, match="no space left"):
                updater.follow(fleet, fleet.add(large))
            assert updater.state.active == digests["old"] and is_whole(home.slot(digests["old"]), digests["old"])
        updater.follow(fleet, digests["new"])  # what fits is taken, what was begun is let go
        assert updater.state.active == digests["new"]


def test_read_only_file_system_keeps_the_bundle_answering_and_the_agent_running(
    tmp_path: Path, live: LiveFleet, digests: dict[str, str]
) -> None:
    with mounted(tmp_path / "small", 20_000_000) as folder:
        home = Home(folder / "home")
        home.make()
        live.enroll(home)
        live.order("pi-1", digests["old"])
        with agent_process(home):
            until(lambda: live.device().slot.running == digests["old"], "the bundle answers")
        if subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True).returncode:
            pytest.skip("remounting is not allowed here")
        live.order("pi-1", digests["new"])
        with agent_process(home) as process:
            until(lambda: "read-only file system" in live.device().slot.reason, "the fleet is told")
            assert process.poll() is None and live.device().slot.running == digests["old"]
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
            until(lambda: live.device().slot.running == digests["new"], "the update goes on")


def test_agent_with_a_node_answers_over_http_and_exchanges_what_is_asked(
    tmp_path: Path, home: Home, live: LiveFleet
) -> None:
    made = [make_bundle(tmp_path / f"edge{scale}", scale=scale, edge=True, as_directory=True) for scale in (2.0, 3.0)]
    old, new = (push(live.service, bundle).digest for bundle in made)
    live.enroll(home, tier="edge")
    live.order("pi-1", old)
    port = free_ports()
    name = model_name("net", "tail")

    def served() -> list[str]:
        found = []
        with contextlib.suppress(httpx.HTTPError, KeyError):  # one of them may be let go in the middle
            for model in httpx.post(f"http://127.0.0.1:{port}/v2/repository/index", json={}).json():
                path = f"/v2/models/{model['name']}/versions/{model['version']}/config"
                config = httpx.get(f"http://127.0.0.1:{port}{path}").json()
                found.append(config["parameters"]["edgekit_bundle"]["string_value"])
        return found

    with agent_process(home, "--serve", str(port)):
        until(lambda: live.device().slot.running == old, "the node answers")
        assert httpx.get(f"http://127.0.0.1:{port}/v2/models/{name}/ready").status_code == 200
        live.order("pi-1", new, kept=[old])
        until(lambda: set(served()) == {old, new}, "both answer")
        live.order("pi-1", new)
        until(lambda: served() == [new], "the old one is let go")
    until(lambda: not served(), "the node ends with its agent")
