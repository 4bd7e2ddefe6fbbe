from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, ConflictError, StoreError
from edgekit.fleet.agent.trusted import Trusted
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.signed import key_folder, opened
from edgekit.fleet.service.signing import Signing
from edgekit.fleet.service.trust import LOOK_EVERY_S
from edgekit.fleet.store import database as database_module
from edgekit.fleet.store.tables import SignedRow
from edgekit.fleet.trust.keys import Role
from edgekit.fleet.trust.repository import read_metadata, target_path
from tests.fleet.acting import ADMIN, enroll, push
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / f"b{scale}", scale=scale, as_directory=True) for scale in (2.0, 3.0, 4.0)]


def named(fleet: FleetService) -> set[str]:
    """Digests, by the newest timestamp, snapshot and targets."""
    timestamp = read_metadata(fleet.trust.file("timestamp.json"), "timestamp").signed
    snapshot = read_metadata(fleet.trust.file(f"{timestamp.snapshot_meta.version}.snapshot.json"), "snapshot").signed
    targets = read_metadata(fleet.trust.file(f"{snapshot.meta['targets.json'].version}.targets.json"), "targets").signed
    return {path.partition("/")[0] for path in targets.targets}


def version(fleet: FleetService, role: str = "timestamp") -> int:
    with fleet.database.read() as session:
        found = [row.version for row in session.query(SignedRow).where(SignedRow.role == role)]
    return max(found)


def test_what_is_accepted_is_named_and_what_is_removed_is_not(fleet: FleetService, bundles: list[Path]) -> None:
    assert named(fleet) == set()
    first, second = (push(fleet, bundle).digest for bundle in bundles[:2])
    assert named(fleet) == {first, second}
    push(fleet, bundles[0])  # once more changes nothing
    before = version(fleet)
    assert push(fleet, bundles[0]).digest == first
    assert version(fleet) == before
    fleet.bundles.remove(ADMIN, first)
    assert named(fleet) == {second}


def test_a_bundle_that_cannot_be_signed_for_is_not_half_there(
    fleet: FleetService, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise ConflictError("in the middle of it", hint="none")

    monkeypatch.setattr(fleet.trust, "_change", fail)
    with pytest.raises(ConflictError):
        push(fleet, bundles[0])
    assert not fleet.bundles.list().items
    monkeypatch.undo()
    push(fleet, bundles[0])
    assert len(named(fleet)) == 1


def test_a_client_of_the_framework_takes_what_is_served(
    fleet: FleetService, bundles: list[Path], tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(fleet, bundles[0]).digest
    root = fleet.trust.file("1.root.json")
    trusted = Trusted(tmp_path / "seen", root, lambda name: iter([fleet.trust.file(name)]))
    target = trusted.target(target_path(digest))
    target.verify_length_and_hashes(fleet.bundles.index(digest).index.encode())


@pytest.mark.parametrize(
    "name",
    ["root.json", "2.root.json", "0.root.json", "1.timestamp.json", "1.root.json/..", "..", "1.other.json", "9" * 40],
)
def test_what_there_is_not_is_absent(fleet: FleetService, name: str) -> None:
    with pytest.raises(AbsentError):
        fleet.trust.file(name)


def test_snapshot_and_timestamp_are_renewed_before_they_end(fleet: FleetService, clock: SettableClock) -> None:
    fleet.trust.renew()
    first = version(fleet)
    for _ in range(20):
        clock.advance(0.25 * DAY_S)
        fleet.trust.renew()
        assert fleet.trust.ends()["timestamp"] > clock() + 0.25 * DAY_S
        assert fleet.trust.ends()["snapshot"] > clock() + 3 * DAY_S
    assert version(fleet) > first


def test_root_and_targets_are_renewed_while_their_keys_are_here(fleet: FleetService, clock: SettableClock) -> None:
    for _ in range(14):
        clock.advance(30 * DAY_S)
        fleet.trust.renew()
        ends = fleet.trust.ends()
        assert all(at > clock() for at in ends.values()), ends
    assert version(fleet, "root") == 3


def test_what_nobody_renews_is_told_before_it_ends(
    fleet: FleetService, clock: SettableClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet.database.read() as session:
        repository = opened(session, fleet.trust.folder, clock)
    assert repository is not None
    key_folder(fleet.trust.folder).export("root", repository.keys_of("root"), tmp_path / "stick", move=True)
    clock.advance(200 * DAY_S)
    with caplog.at_level(logging.WARNING, "edgekit"):
        fleet.trust.renew()
        clock.advance(LOOK_EVERY_S)
        fleet.trust.renew()
    told = [record.getMessage() for record in caplog.records if "root metadata ends" in record.getMessage()]
    assert len(told) == 1
    assert "165 days" in told[0]
    assert fleet.trust.ends_at() == fleet.trust.ends()["targets"]
    clock.advance(90 * DAY_S)
    fleet.trust.renew()
    assert fleet.overview().trust_ends_at == fleet.trust.ends()["root"] < clock() + 80 * DAY_S


def test_a_fleet_restored_from_a_backup_signs_newer_than_devices_have_seen(tmp_path: Path, bundles: list[Path]) -> None:
    clock = SettableClock()
    fleet = FleetService(tmp_path / "data", now=clock)
    push(fleet, bundles[0])
    fleet.close()
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    fleet = FleetService(tmp_path / "data", now=clock)
    push(fleet, bundles[1])
    push(fleet, bundles[2])
    seen = {role: version(fleet, role) for role in ("targets", "snapshot", "timestamp")}
    fleet.close()
    clock.advance(60)
    restored = FleetService(tmp_path / "backup", now=clock)
    assert {role: version(restored, role) > seen[role] for role in seen} == dict.fromkeys(seen, True)
    assert len(named(restored)) == 1
    restored.close()


def test_a_restart_names_what_the_registry_holds(tmp_path: Path, bundles: list[Path]) -> None:
    fleet = FleetService(tmp_path / "data")
    digest = push(fleet, bundles[0]).digest
    with fleet.database.write() as session:
        session.query(SignedRow).delete()  # a fleet from before anything was signed
    fleet.close()
    fleet = FleetService(tmp_path / "data")
    assert named(fleet) == {digest}
    fleet.close()


def test_bundles_that_are_accepted_at_once_are_all_named(fleet: FleetService, tmp_path: Path) -> None:
    offers = []
    for number in range(6):
        bundle = make_bundle(tmp_path / f"m{number}", scale=2.0 + number, as_directory=True)
        offer = Offer(index=(bundle / "index.json").read_text())
        for missing in fleet.bundles.offer(ADMIN, offer).missing:
            data = (bundle / missing.path).read_bytes()
            fleet.bundles.receive(ADMIN, missing.sha256, 0, missing.size_bytes, [data])
        offers.append(offer)
    with ThreadPoolExecutor(6) as pool:
        accepted = [one.digest for one in pool.map(lambda offer: fleet.bundles.accept(ADMIN, offer), offers)]
    assert named(fleet) == set(accepted)
    assert len(named(fleet)) == 6


def test_old_versions_go_and_roots_stay(fleet: FleetService) -> None:
    for _ in range(40):
        with fleet.database.write() as session:
            fleet.trust.withdraw(session, "00" * 32)
    with fleet.database.read() as session:
        kept = [row.role for row in session.query(SignedRow)]
    assert {role: kept.count(role) for role in set(kept)} == {"root": 1, "targets": 16, "snapshot": 16, "timestamp": 16}


def test_without_the_key_of_targets_a_bundle_waits_for_its_owner(
    fleet: FleetService, bundles: list[Path], tmp_path: Path
) -> None:
    enroll(fleet, "pi-1")
    fleet.groups.put(ADMIN, "all", GroupOrder(selector=""))
    signed = push(fleet, bundles[0]).digest
    for path in key_folder(fleet.trust.folder).folder.glob("targets-*"):
        path.rename(tmp_path / "targets.pem")
    waiting = push(fleet, bundles[1]).digest
    assert named(fleet) == {signed}
    with pytest.raises(ConflictError, match="not in the signed metadata"):
        fleet.rollouts.start(ADMIN, RolloutOrder(bundle=waiting, group="all"))
    fleet.rollouts.start(ADMIN, RolloutOrder(bundle=signed, group="all"))


@pytest.mark.parametrize("role", ["root", "timestamp"])
def test_a_new_key_is_kept_where_nobody_can_say_whether_it_was_stored(
    fleet: FleetService, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    real = database_module._commit

    def commit(session: Session) -> None:
        real(session)
        raise StoreError("the connection broke while a change was stored")

    monkeypatch.setattr(database_module, "_commit", commit)
    with pytest.raises(StoreError, match="broke"):
        Signing(fleet.trust).rotate(role)
    monkeypatch.undo()
    assert all(found.here for found in Signing(fleet.trust).show())
    assert Signing(fleet.trust).rotate(role)


def test_folder_and_database_of_different_fleets_do_not_serve(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        FleetService(tmp_path / name).close()
    database = f"sqlite:///{tmp_path / 'ours' / 'fleet.db'}"
    keys = sorted((tmp_path / "ours" / "trust" / "keys").iterdir())
    for folder in ("theirs", "nobodys"):
        with pytest.raises(StoreError, match="a fleet of which no key lies in"):
            FleetService(tmp_path / folder, database)
    with pytest.raises(StoreError, match="holds the keys of a fleet, and the database holds none") as told:
        FleetService(tmp_path / "ours", f"sqlite:///{tmp_path / 'empty.db'}")
    assert "--db" in told.value.hint
    assert sorted((tmp_path / "ours" / "trust" / "keys").iterdir()) == keys
    FleetService(tmp_path / "ours").close()
