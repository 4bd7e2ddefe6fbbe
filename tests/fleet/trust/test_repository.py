from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConflictError, SignatureError, StoreError
from edgekit.fleet.trust.keys import ROLES, KeyFolder, Role, make_signer
from edgekit.fleet.trust.repository import LIFETIME_DAYS, Repository, read_metadata, target_of, target_path
from tests.fleet.conftest import SettableClock

DAY_S = 86_400.0
DIGEST = "ab" * 32


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


@pytest.fixture
def begun(keys: KeyFolder, clock: SettableClock) -> Repository:
    signers = {role: make_signer() for role in ROLES}
    for role, signer in signers.items():
        keys.keep(role, signer)
    made = Repository({}, keys, clock)
    made.begin(signers)
    return made


@pytest.fixture
def repository(begun: Repository, keys: KeyFolder, clock: SettableClock) -> Repository:
    """With the keys that lie in the folder, and no others."""
    return Repository(begun.bodies, keys, clock)


def test_it_begins_with_all_four_roles_signed(begun: Repository, repository: Repository, clock: SettableClock) -> None:
    assert set(begun.fresh) == set(ROLES)
    assert repository.version("root") == 1
    assert {role: repository.ends_at(role) - clock() for role in ROLES} == {
        role: days * DAY_S for role, days in LIFETIME_DAYS.items()
    }
    for role in ROLES:
        made = read_metadata(repository.bodies[role], role)
        repository.root.verify_delegate(role, made.signed_bytes, made.signatures)
        assert made.signed.version >= (1 if role == "root" else int(clock()))


def test_versions_rise_with_every_change_even_within_a_second(repository: Repository) -> None:
    before = {role: repository.version(role) for role in ROLES}
    repository.publish(repository.change_targets({target_path(DIGEST): target_of(DIGEST, "{}", "")}))
    repository.publish(repository.change_targets({target_path(DIGEST): None}))
    after = {role: repository.version(role) for role in ROLES}
    assert {role: after[role] - before[role] for role in ROLES} == {
        "root": 0,
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
    }


def test_what_an_older_copy_publishes_later_is_newer(
    repository: Repository, keys: KeyFolder, clock: SettableClock
) -> None:
    backup = dict(repository.bodies)
    for _ in range(5):
        repository.publish(repository.draft("targets"))
    clock.advance(3600)
    restored = Repository(backup, keys, clock)
    restored.publish(restored.draft("targets"))
    for role in ("targets", "snapshot", "timestamp"):
        assert restored.version(role) > repository.version(role)


def test_a_role_is_due_from_the_middle_of_its_life_on(repository: Repository, clock: SettableClock) -> None:
    assert repository.due() == ()
    clock.advance(0.49 * DAY_S)
    assert repository.due() == ()
    clock.advance(0.02 * DAY_S)
    assert repository.due() == ("timestamp",)
    clock.advance(50 * DAY_S)
    assert repository.due() == ("targets", "snapshot", "timestamp")


def test_metadata_that_lacks_signatures_is_not_published(repository: Repository, keys: KeyFolder) -> None:
    keys.drop("targets", repository.keys_of("targets")[0].keyid)
    draft = repository.draft("targets")
    assert repository.lacks("targets", draft).startswith("targets keys must sign: 1 more of ")
    with pytest.raises(SignatureError, match="targets keys must sign"):
        repository.publish(draft)


def test_a_root_wants_the_key_before_it_and_its_own(repository: Repository, keys: KeyFolder) -> None:
    new = make_signer()
    draft = repository.change_key("root", new.public_key)
    assert "its own root keys" in repository.lacks("root", draft)
    draft.sign(new, append=True)
    repository.publish(draft)
    assert repository.version("root") == 2
    stranger = make_signer()
    third = repository.change_key("root", stranger.public_key)
    third.sign(stranger, append=True)
    assert repository.lacks("root", third).startswith("root keys must sign")


def test_a_draft_from_before_another_publication_is_refused(repository: Repository) -> None:
    draft = repository.draft("targets")
    repository.publish(repository.draft("targets"))
    with pytest.raises(ConflictError, match="was drafted before"):
        repository.publish(draft)


def test_a_root_must_be_the_next_one(repository: Repository) -> None:
    skipped = repository.draft("root")
    skipped.signed.version += 1
    with pytest.raises(ConflictError):
        repository.publish(skipped)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_lost_key_is_told_by_its_role(repository: Repository, keys: KeyFolder, role: Role) -> None:
    assert repository.has_key(role)
    keys.drop(role, repository.keys_of(role)[0].keyid)
    assert not repository.has_key(role)
    with pytest.raises(SignatureError, match=f"{role} keys must sign"):
        repository.publish(repository.draft("targets"))


def test_a_key_that_others_may_read_signs_nothing(repository: Repository, keys: KeyFolder) -> None:
    keys.path("timestamp", repository.keys_of("timestamp")[0].keyid).chmod(0o644)
    with pytest.raises(StoreError, match="may be read by others"):
        repository.publish()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"signed": {"_type": "nothing"}, "signatures": []}'])
def test_what_is_no_metadata_is_told(body: bytes) -> None:
    with pytest.raises(SignatureError, match="no signed metadata"):
        read_metadata(body)


def test_metadata_of_another_role_is_told(repository: Repository) -> None:
    with pytest.raises(SignatureError, match="of the role timestamp, wanted root"):
        read_metadata(repository.bodies["timestamp"], "root")
