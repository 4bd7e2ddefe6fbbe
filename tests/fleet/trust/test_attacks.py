"""Each attack that The Update Framework names, by somebody who serves what he likes to a device that has seen better.

Source of the list: Samuel et al. 2010, Survivable Key Compromise in Software Update Systems, CCS; the specification's
section 1.5.2, Goals for specific attacks to protect against.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import OutputError, RemoteError, SignatureError, UnreachableError
from edgekit.fleet.agent.trusted import SLOWEST_S, Trusted, vouched
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.trust.repository import target_path
from tests.fleet.trust.publisher import DIGEST, OFFER, OTHER, Publisher

DAY_S = 86_400.0


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "keys")
    made.add()
    return made


@pytest.fixture
def trusted(publisher: Publisher, tmp_path: Path) -> Trusted:
    """A device that has seen what is published."""
    made = Trusted(tmp_path / "trust", publisher.root, publisher.get)
    made.refresh()
    return made


def take(trusted: Trusted, digest: str = DIGEST, offer: Offer = OFFER) -> Offer:
    return vouched(trusted, target_path(digest), lambda: offer)


def changed(body: bytes, change: Callable[[dict], None]) -> bytes:
    """With another content under the old signature."""
    told = json.loads(body)
    change(told["signed"])
    return json.dumps(told).encode()


def test_what_is_signed_is_taken(trusted: Trusted) -> None:
    assert take(trusted) == OFFER


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa"])
def test_either_kind_of_key_signs(tmp_path: Path, algorithm: str) -> None:
    publisher = Publisher(tmp_path / "keys", algorithm)  # type: ignore[arg-type]
    publisher.add()
    assert take(Trusted(tmp_path / "trust", publisher.root, publisher.get)) == OFFER


def test_nothing_is_asked_of_the_registry_before_the_metadata_names_it(trusted: Trusted) -> None:
    def never() -> Offer:
        raise AssertionError("the registry was asked")

    with pytest.raises(SignatureError, match="does not name"):
        vouched(trusted, target_path(OTHER), never)


def test_a_bundle_that_was_removed_is_not_taken_again(publisher: Publisher, trusted: Trusted) -> None:
    publisher.repository.publish(publisher.repository.change_targets({target_path(DIGEST): None}))
    publisher.serve()
    with pytest.raises(SignatureError, match="does not name"):
        take(trusted)


def test_arbitrary_software_another_index_is_refused(trusted: Trusted) -> None:
    with pytest.raises(SignatureError, match="another one than was signed"):
        take(trusted, offer=Offer(index=OFFER.index.replace("bundle", "bundlf"), signature=OFFER.signature))


@pytest.mark.parametrize("signature", ["", '{"signature": "of somebody"}'])
def test_the_signature_of_the_bundle_is_sealed_too(trusted: Trusted, signature: str) -> None:
    with pytest.raises(SignatureError, match="another one than was signed"):
        take(trusted, offer=Offer(index=OFFER.index, signature=signature))


def test_a_signature_that_was_put_on_later_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    publisher.add(OTHER, Offer(index=OFFER.index, signature=""))
    trusted = Trusted(tmp_path / "trust", publisher.root, publisher.get)
    assert take(trusted, OTHER, Offer(index=OFFER.index)).signature == ""
    with pytest.raises(SignatureError):
        take(trusted, OTHER)


def test_rollback_an_older_timestamp_is_refused(publisher: Publisher, trusted: Trusted) -> None:
    older = dict(publisher.files)
    publisher.add(OTHER)
    trusted.refresh()
    publisher.files = older
    with pytest.raises(SignatureError, match="older signed metadata than this device has seen"):
        take(trusted)


def test_rollback_holds_over_a_restart_of_the_agent(publisher: Publisher, trusted: Trusted, tmp_path: Path) -> None:
    older = dict(publisher.files)
    publisher.add(OTHER)
    trusted.refresh()
    publisher.files = older
    with pytest.raises(SignatureError, match="older"):
        take(Trusted(tmp_path / "trust", publisher.root, publisher.get))


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_replayed_parts_of_older_metadata_do_not_fit(publisher: Publisher, trusted: Trusted, role: str) -> None:
    older = publisher.repository.bodies[role]  # type: ignore[index]
    publisher.add(OTHER)
    publisher.files[f"{publisher.repository.version(role)}.{role}.json"] = older  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match="does not fit together"):
        take(trusted)


def test_mix_and_match_targets_of_another_snapshot_do_not_fit(publisher: Publisher, tmp_path: Path) -> None:
    first = publisher.repository.bodies["targets"]
    publisher.add(OTHER)
    publisher.files[f"{publisher.repository.version('targets')}.targets.json"] = first
    with pytest.raises(SignatureError, match="does not fit together"):
        take(Trusted(tmp_path / "new", publisher.root, publisher.get))


def test_freeze_metadata_that_has_ended_is_refused_and_says_what_the_clock_says(
    tmp_path: Path, publisher: Publisher
) -> None:
    publisher.ago_s = 1.5 * DAY_S  # the timestamp lives a day
    publisher.repository.publish()
    publisher.files = {name: body for name, body in publisher.files.items() if "root" in name}
    publisher.serve()
    with pytest.raises(SignatureError, match=r"has ended .*timestamp.*clock says 20\d\d-") as caught:
        take(Trusted(tmp_path / "trust", publisher.root, publisher.get))
    assert "what runs goes on" in caught.value.hint


@pytest.mark.parametrize("ago_days", [8, 91, 366])
def test_every_role_ends(tmp_path: Path, ago_days: float) -> None:
    publisher = Publisher(tmp_path / "keys")
    publisher.ago_s = ago_days * DAY_S
    publisher.repository.publish(publisher.repository.draft("root"), publisher.repository.draft("targets"))
    publisher.ago_s = 0.0
    if ago_days > 7:
        publisher.repository.publish()  # snapshot and timestamp are new: targets or root has ended
    publisher.serve()
    trusted = Trusted(tmp_path / "trust", publisher.root, publisher.get)
    if ago_days == 8:
        trusted.refresh()
        return
    with pytest.raises(SignatureError, match="has ended"):
        trusted.refresh()


def test_wrong_keys_are_refused(publisher: Publisher, trusted: Trusted, tmp_path: Path) -> None:
    stranger = Publisher(tmp_path / "other")
    stranger.add(OTHER)
    publisher.files = {**stranger.files, "1.root.json": publisher.root}
    with pytest.raises(SignatureError, match="not signed by the keys"):
        take(trusted, OTHER)


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets"])
def test_altered_metadata_is_refused(publisher: Publisher, tmp_path: Path, name: str) -> None:
    file = next(one for one in sorted(publisher.files, reverse=True) if one.endswith(f"{name}.json"))

    def grow(signed: dict) -> None:
        signed["version"] += 1

    publisher.files[file] = changed(publisher.files[file], grow)
    with pytest.raises(SignatureError):
        take(Trusted(tmp_path / "new", publisher.root, publisher.get))


def test_a_root_that_its_predecessor_did_not_sign_is_refused(
    publisher: Publisher, trusted: Trusted, tmp_path: Path
) -> None:
    stranger = Publisher(tmp_path / "other")
    stranger.rotate("root")
    publisher.files["2.root.json"] = stranger.files["2.root.json"]
    with pytest.raises(SignatureError, match="not signed by the keys"):
        take(trusted)


def test_every_key_can_be_changed_and_devices_follow(publisher: Publisher, trusted: Trusted) -> None:
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        publisher.rotate(role)
    assert take(trusted) == OFFER
    assert trusted.refresh()._trusted_set.root.version == 6


def test_a_key_that_was_changed_signs_nothing_any_more(publisher: Publisher, trusted: Trusted) -> None:
    stolen = publisher.repository
    publisher.rotate("timestamp")
    publisher.rotate("snapshot")
    trusted.refresh()
    stolen.publish()
    publisher.files["timestamp.json"] = stolen.bodies["timestamp"]
    with pytest.raises(SignatureError, match="not signed by the keys"):
        take(trusted)


def test_endless_data_is_cut_off(publisher: Publisher, trusted: Trusted) -> None:
    sent = []

    def endless(name: str) -> Iterator[bytes]:
        for _ in range(10_000):
            sent.append(1)
            yield bytes(100_000)

    trusted._fetcher._get = endless
    with pytest.raises(SignatureError, match="does not fit together"):
        take(trusted)
    assert len(sent) < 20


def test_slow_retrieval_is_given_up(publisher: Publisher, tmp_path: Path) -> None:
    at = iter(float(second) for second in range(0, 10_000, 50))
    trusted = Trusted(tmp_path / "trust", publisher.root, publisher.get, clock=lambda: next(at))
    publisher.files["timestamp.json"] += b" " * 5000
    with pytest.raises(RemoteError, match=f"longer than {SLOWEST_S:g} s"):
        take(trusted)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"\xff\xfe", b'{"signed": {"_type": "targets"}, "signatures": []}', b"[" * 9000]
)
def test_what_is_no_metadata_is_refused_without_a_traceback(
    publisher: Publisher, trusted: Trusted, body: bytes
) -> None:
    publisher.files["timestamp.json"] = body
    with pytest.raises(SignatureError):
        take(trusted)


def test_a_fleet_that_is_not_reached_is_told_as_such(publisher: Publisher, trusted: Trusted) -> None:
    def gone(name: str) -> Iterator[bytes]:
        raise UnreachableError("the fleet does not answer", hint="none")
        yield b""

    trusted._fetcher._get = gone
    with pytest.raises(UnreachableError):
        take(trusted)


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json", "root_history/2.root.json"])
def test_metadata_that_a_power_cut_left_half_written_comes_again(
    publisher: Publisher, trusted: Trusted, tmp_path: Path, name: str
) -> None:
    publisher.rotate("root")
    trusted.refresh()
    path = tmp_path / "trust" / name
    path.write_bytes(path.read_bytes()[:100])
    assert take(Trusted(tmp_path / "trust", publisher.root, publisher.get)) == OFFER


def test_metadata_travels_once(publisher: Publisher, trusted: Trusted) -> None:
    publisher.asked.clear()
    take(trusted)
    assert publisher.asked == ["2.root.json", "timestamp.json"]


def test_a_folder_that_cannot_be_written_is_told(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        take(Trusted(tmp_path / "file" / "trust", publisher.root, publisher.get))


def test_what_was_seen_is_on_the_disk_before_anything_is_taken_by_it(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would make an older version new again."""
    folder, synced, real = tmp_path / "cut", set[tuple[int, int]](), os.fsync

    def fsync(descriptor: int) -> None:
        about = os.fstat(descriptor)
        synced.add((about.st_ino, about.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Trusted(folder, publisher.root, publisher.get).refresh()
    kept = {path.name: path.stat() for path in (*folder.glob("*.json"), folder, folder / "root_history")}
    assert {"root.json", "timestamp.json", "snapshot.json", "targets.json", "cut"} <= set(kept)
    assert [name for name, about in kept.items() if (about.st_ino, about.st_size) not in synced] == []
