"""A device whose fleet offers what nobody vouches for: it says why, the fleet hears it, and what runs goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.errors import SignatureError, UnreachableError
from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.enrolment import enroll
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.agents import Sync
from edgekit.fleet.trust.repository import LIFETIME_DAYS
from tests.fleet.acting import push
from tests.fleet.agent.fleets import trial
from tests.fleet.bundles import make_bundle
from tests.fleet.server.tls import Place, serving


@dataclass
class Device:
    place: Place
    home: Home
    client: DeviceClient
    updater: Updater

    def follow(self, digest: str) -> None:
        """As the daemon does it: what came of it is told."""
        try:
            self.updater.follow(self.client, digest)
        finally:
            self.client.sync(Sync(slot=self.updater.slot))

    def refuses(self, digest: str, match: str) -> None:
        before = (self.updater.state, sorted(one.name for one in self.home.slots.iterdir()))
        with pytest.raises(SignatureError, match=match):
            self.follow(digest)
        assert (self.updater.state, sorted(one.name for one in self.home.slots.iterdir())) == before
        heard = self.place.service.devices.get("pi-1").slot
        assert (heard.phase, heard.candidate) == ("failed", digest)
        assert match in heard.reason
        assert heard.running == before[0].active


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"b{scale}", scale=scale, as_directory=True) for scale in (2.0, 3.0, 4.0)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving(tmp_path / "data") as found:
        yield found


@pytest.fixture
def device(place: Place, tmp_path: Path) -> Iterator[Device]:
    home = Home(tmp_path / "home")
    enroll(home, place.url, place.invite(), "pi-1", "device")
    made = Device(place, home, DeviceClient(home), Updater(home, "device", NoRuntime(), trial))
    made.updater.start()
    yield made
    made.client.close()


@pytest.fixture
def digests(place: Place, device: Device, bundles: list[Path]) -> list[str]:
    """Three bundles in the registry: the device has run the first, and runs the second."""
    found = [push(place.service, bundle).digest for bundle in bundles]
    for digest in found[:2]:
        device.follow(digest)
    assert device.updater.slot.running == found[1]
    assert device.updater.state.previous == found[0]
    return found


def test_what_is_signed_runs(device: Device, digests: list[str]) -> None:
    device.follow(digests[2])
    assert device.place.service.devices.get("pi-1").slot.running == digests[2]


def test_a_bundle_that_nobody_vouches_for_is_refused(device: Device, digests: list[str]) -> None:
    service = device.place.service
    with service.database.write() as session:
        service.trust.withdraw(session, digests[2])
    device.refuses(digests[2], "does not name")
    with service.database.write() as session:
        service.trust.need(session, digests[2])
    device.follow(digests[2])  # it is not held against the bundle
    assert device.updater.slot.running == digests[2]


def test_metadata_that_is_replayed_is_refused(
    device: Device, digests: list[str], monkeypatch: pytest.MonkeyPatch, bundles: list[Path]
) -> None:
    service = device.place.service
    older = service.trust.file("timestamp.json")
    service.trust.start()
    device.follow(digests[0])  # back, from the slot that is there: nothing is asked
    device.client.index(digests[2])  # newer metadata is seen
    real = service.trust.file
    monkeypatch.setattr(service.trust, "file", lambda name: older if name == "timestamp.json" else real(name))
    device.refuses(digests[2], "older signed metadata than this device has seen")


def test_metadata_that_has_ended_stops_updates_and_nothing_else(
    device: Device, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIFETIME_DAYS, "timestamp", 0.0)
    device.place.service.trust.start()
    device.refuses(digests[2], "has ended")
    assert device.updater.slot.running == digests[1]
    again = Updater(device.home, "device", NoRuntime(), trial)
    again.start()  # a restart asks nobody
    assert again.slot.running == digests[1]
    device.follow(digests[0])  # and what was there before can be gone back to
    assert device.updater.slot.running == digests[0]


def test_an_index_that_was_changed_in_the_registry_is_refused(
    device: Device, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = device.place.service.bundles
    real = bundles.index
    monkeypatch.setattr(
        bundles, "index", lambda digest: real(digest).model_copy(update={"index": real(digest).index + "\n"})
    )
    device.refuses(digests[2], "another one than was signed")


def test_without_a_fleet_a_device_goes_on_for_ever(tmp_path: Path, bundles: list[Path]) -> None:
    home = Home(tmp_path / "home")
    with serving(tmp_path / "data") as place:
        enroll(home, place.url, place.invite(), "pi-1", "device")
        first, second = (push(place.service, bundle).digest for bundle in bundles[:2])
        client = DeviceClient(home)
        updater = Updater(home, "device", NoRuntime(), trial)
        updater.start()
        updater.follow(client, first)
    with pytest.raises(UnreachableError):
        updater.follow(client, second)
    assert updater.slot.running == first
    client.close()
    again = Updater(home, "device", NoRuntime(), trial)
    again.start()
    assert again.slot.running == first
