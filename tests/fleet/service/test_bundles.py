"""Bundles: only what is lacking travels, everything is verified, and nothing goes that is in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.layout import INDEX
from edgekit.errors import AbsentError, ConflictError, ForbiddenError, UsageError
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service import bundles as bundles_module
from edgekit.fleet.service.people import Actor
from tests.fleet.acting import ADMIN, enroll, files_of, push, says
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {
        name: make_bundle(folder / name, scale=scale, edge=True, as_directory=True)
        for name, scale in (("one", 2.0), ("two", 3.0))
    }


def test_only_what_is_lacking_travels(fleet: FleetService, made: dict[str, Path]) -> None:
    first = push(fleet, made["one"])
    assert first.new_bytes == first.size_bytes
    offer = Offer(index=(made["two"] / INDEX).read_text())
    lacking = fleet.bundles.offer(ADMIN, offer)
    shared = set(files_of(made["one"]).values()) & set(files_of(made["two"]).values())
    assert shared and not {one.sha256 for one in lacking.missing} & shared
    second = push(fleet, made["two"])
    assert 0 < second.new_bytes < second.size_bytes
    assert second.new_bytes == sum({one.sha256: one.size_bytes for one in lacking.missing}.values())


def test_the_same_again_changes_nothing(fleet: FleetService, made: dict[str, Path], clock: SettableClock) -> None:
    first = push(fleet, made["one"])
    clock.advance(60.0)
    assert push(fleet, made["one"]).pushed_at == first.pushed_at
    assert len(fleet.bundles.list().items) == 1


def test_the_same_from_two_people_at_once_is_one(fleet: FleetService, made: dict[str, Path]) -> None:
    push(fleet, made["two"])  # its files are there for both
    offer = Offer(index=(made["one"] / INDEX).read_text())
    for missing in fleet.bundles.offer(ADMIN, offer).missing:
        data = (made["one"] / missing.path).read_bytes()
        fleet.bundles.receive(ADMIN, missing.sha256, 0, missing.size_bytes, [data])
    with ThreadPoolExecutor(4) as threads:
        accepted = list(threads.map(lambda _: fleet.bundles.accept(ADMIN, offer), range(4)))
    assert len({one.digest for one in accepted}) == 1 and len(fleet.bundles.list().items) == 2


def test_what_is_not_all_here_is_not_accepted(fleet: FleetService, made: dict[str, Path]) -> None:
    offer = Offer(index=(made["one"] / INDEX).read_text())
    missing = fleet.bundles.offer(ADMIN, offer).missing
    for one in missing[:-1]:
        data = (made["one"] / one.path).read_bytes()
        fleet.bundles.receive(ADMIN, one.sha256, 0, one.size_bytes, [data])
    with pytest.raises(UsageError, match="not here yet"):
        fleet.bundles.accept(ADMIN, offer)
    assert fleet.bundles.list().items == ()


def test_a_file_goes_on_where_it_broke_off(fleet: FleetService, made: dict[str, Path]) -> None:
    offer = Offer(index=(made["one"] / INDEX).read_text())
    one = max(fleet.bundles.offer(ADMIN, offer).missing, key=lambda one: one.size_bytes)
    data = (made["one"] / one.path).read_bytes()
    half = len(data) // 2
    assert not fleet.bundles.receive(ADMIN, one.sha256, 0, len(data), [data[:half]]).complete
    again = next(each for each in fleet.bundles.offer(ADMIN, offer).missing if each.sha256 == one.sha256)
    assert again.received == half
    assert fleet.bundles.receive(ADMIN, one.sha256, half, len(data), [data[half:]]).complete


def test_a_bundle_is_found_by_name_digest_or_the_front_of_one(
    fleet: FleetService, made: dict[str, Path], clock: SettableClock
) -> None:
    first = push(fleet, made["one"]).digest
    clock.advance(1.0)
    second = push(fleet, made["two"]).digest
    assert fleet.bundles.find("net") == second  # the newest of the name
    for reference in (first, first[:8], f"sha256:{first[:12]}", f"net@sha256:{first[:12]}...", f"net@{first}"):
        assert fleet.bundles.find(reference) == first
    for reference in ("other", first[:7], f"other@sha256:{first[:12]}", "net@sha256:" + "0" * 64, "%", "_" * 8):
        with pytest.raises(AbsentError):
            fleet.bundles.find(reference)


def test_bundles_are_listed_the_newest_first_by_pages(
    fleet: FleetService, made: dict[str, Path], clock: SettableClock
) -> None:
    first = push(fleet, made["one"]).digest
    clock.advance(1.0)
    second = push(fleet, made["two"]).digest
    page = fleet.bundles.list(limit=1)
    assert [one.digest for one in page.items] == [second]
    assert [one.digest for one in fleet.bundles.list(page.next, 1).items] == [first]


def test_who_runs_it_is_counted_and_nothing_goes_that_is_in_use(fleet: FleetService, made: dict[str, Path]) -> None:
    digest = push(fleet, made["one"]).digest
    device = enroll(fleet, "a", {"board": "rpi4"}).device
    fleet.devices.sync(device, says(digest))
    assert fleet.bundles.get(digest).running == 1
    with pytest.raises(ConflictError, match="in use"):
        fleet.bundles.remove(ADMIN, digest)
    fleet.devices.sync(device, says(None))
    fleet.groups.put(ADMIN, "pi", GroupOrder(selector="board=rpi4"))
    fleet.rollouts.start(ADMIN, RolloutOrder(bundle=digest, group="pi"))
    with pytest.raises(ConflictError, match="rollout goes on"):
        fleet.bundles.remove(ADMIN, digest)
    assert fleet.bundles.get(digest).files


def test_a_removed_bundle_takes_only_its_own_files_along(fleet: FleetService, made: dict[str, Path]) -> None:
    first = push(fleet, made["one"]).digest
    push(fleet, made["two"])
    fleet.bundles.remove(ADMIN, first)
    with pytest.raises(AbsentError):
        fleet.bundles.get(first)
    assert fleet.bundles.list().items[0].name == "net"
    own = set(files_of(made["two"]).values())
    assert own <= set(fleet.core.blobs)
    again = push(fleet, made["one"])
    assert again.digest == first and again.new_bytes < again.size_bytes


def test_viewers_change_nothing(fleet: FleetService, made: dict[str, Path]) -> None:
    viewer = Actor("bob", "viewer")
    with pytest.raises(ForbiddenError):
        push(fleet, made["one"], viewer)
    digest = push(fleet, made["one"]).digest
    with pytest.raises(ForbiddenError):
        fleet.bundles.remove(viewer, digest)
    with pytest.raises(ForbiddenError):
        fleet.bundles.receive(viewer, "a" * 64, 0, 1, [b"x"])
    assert fleet.bundles.get(digest).digest == digest


def test_what_is_accepted_keeps_its_files_while_loose_ones_go(
    fleet: FleetService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the verification and the transaction somebody else removes loose files."""
    folder = make_bundle(tmp_path / "net", as_directory=True)
    fleet.bundles.remove(ADMIN, push(fleet, folder).digest)
    real = bundles_module.open_offered

    def opened(*arguments: Any) -> Any:
        found = real(*arguments)
        fleet.bundles.collect(unchanged_s=-1e9)
        return found

    monkeypatch.setattr(bundles_module, "open_offered", opened)
    with pytest.raises(UsageError, match="not here any more"):
        fleet.bundles.accept(ADMIN, Offer(index=(folder / "index.json").read_text()))
    assert fleet.bundles.list().items == ()
    monkeypatch.undo()
    view = push(fleet, folder)
    assert fleet.bundles.collect(unchanged_s=-1e9) == 0
    assert all(fleet.core.blobs.size(one.sha256) == one.size_bytes for one in view.files)


def test_loose_files_are_looked_for_again_before_they_go(fleet: FleetService, tmp_path: Path) -> None:
    """Between the look for loose ones and their end somebody pushes a bundle that holds them."""
    folder, blobs = make_bundle(tmp_path / "net", as_directory=True), fleet.core.blobs
    fleet.bundles.remove(ADMIN, push(fleet, folder).digest)
    real = blobs.changed

    def changed() -> Any:
        found = list(real())
        push(fleet, folder)
        return found

    blobs.changed = changed  # type: ignore[method-assign]
    assert fleet.bundles.collect(unchanged_s=-1e9) == 0
    assert all(blobs.size(sha256) is not None for sha256 in files_of(folder).values())
