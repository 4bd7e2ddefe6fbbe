"""`edgekit fleet keys`: beside the data folder of a fleet, and where its keys are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

pytest.importorskip("sqlalchemy")

from edgekit.errors import ConflictError
from edgekit.fleet.agent.trusted import Trusted
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.trust.repository import target_path
from tests.fleet.acting import ADMIN, enroll, push
from tests.fleet.bundles import make_bundle

Run = Callable[..., Result]
Told = Callable[..., dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    FleetService(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.fixture
def keys(data: Path, invoke: Run) -> Run:
    return lambda *words, code=0: invoke("fleet", "keys", "--data", data, *words, code=code)


@pytest.fixture
def roles(data: Path, invoke_json: Told) -> Callable[[], dict[str, Any]]:
    """Role -> what is told of it."""
    return lambda: {one["role"]: one for one in invoke_json("fleet", "keys", "--data", data)["roles"]}


@pytest.fixture
def device(data: Path, tmp_path: Path) -> Callable[[], Trusted]:
    """One that trusts the root of before whatever the test does, and sees what is published now."""
    service = FleetService(data)
    root = service.trust.file("1.root.json")
    service.close()

    def look() -> Trusted:
        service = FleetService(data)
        files = service.trust.file
        trusted = Trusted(tmp_path / "seen", root, lambda name: iter([files(name)]))
        trusted.refresh()
        service.close()
        return trusted

    return look


def key_in(folder: Path, role: str) -> Path:
    (found,) = folder.glob(f"{role}-*.pem")
    return found


def test_where_each_key_lies_is_shown(keys: Run, roles: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    assert {role: one["here"] for role, one in roles().items()} == dict.fromkeys(
        ("root", "targets", "snapshot", "timestamp"), True
    )
    keys("export", "root", tmp_path / "stick", "--move")
    assert not roles()["root"]["here"]
    assert "elsewhere" in keys().stdout
    assert keys("expiry").stdout == keys().stdout


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa"])
def test_every_key_is_changed_and_devices_follow(
    keys: Run,
    roles: Callable[[], dict[str, Any]],
    device: Callable[[], Trusted],
    data: Path,
    role: str,
    algorithm: str,
) -> None:
    device()
    before = roles()[role]["keys"]
    keys("rotate", role, "--algorithm", algorithm)
    assert roles()[role]["keys"] != before
    assert len(list((data / "trust" / "keys").glob("*.pem"))) == 4
    device()


def test_with_the_root_elsewhere_its_key_must_be_brought(
    keys: Run, roles: Callable[[], dict[str, Any]], device: Callable[[], Trusted], data: Path, tmp_path: Path
) -> None:
    keys("export", "root", tmp_path / "stick", "--move")
    before = roles()
    refused = keys("rotate", "timestamp", code=9)
    assert "root keys must sign" in refused.stderr and "--key FILE" in refused.stderr
    assert roles() == before
    assert len(list((data / "trust" / "keys").glob("*.pem"))) == 3
    keys("rotate", "timestamp", "--key", key_in(tmp_path / "stick", "root"))
    assert roles()["root"]["version"] == 2
    device()


def test_a_root_key_made_elsewhere_never_comes_here(
    keys: Run,
    roles: Callable[[], dict[str, Any]],
    device: Callable[[], Trusted],
    invoke: Run,
    invoke_json: Told,
    data: Path,
    tmp_path: Path,
) -> None:
    device()
    invoke("keygen", tmp_path / "own.key")
    draft = tmp_path / "root.json"
    told = keys("rotate", "root", "--public", tmp_path / "own.key.pub", "--draft", draft)
    assert "waits for signatures" in told.stdout and "sign" in told.stderr
    assert "must sign" in keys("publish", draft, code=9).stderr
    shown = invoke_json("fleet", "keys", "sign", draft)["draft"]
    assert (shown["role"], shown["version"], len(shown["signed_by"])) == ("root", 2, 1)
    signed = invoke_json("fleet", "keys", "sign", draft, "--key", tmp_path / "own.key")["draft"]
    assert len(signed["signed_by"]) == 2
    assert "published: root" in keys("publish", draft).stdout
    assert roles()["root"]["here"] is False
    assert not list((data / "trust" / "keys").glob("root-*"))
    assert "drafted before" in keys("publish", draft, code=17).stderr
    device()
    keys("expiry", "root", "--days", "500", "--key", tmp_path / "own.key")
    device()


def test_bundles_wait_for_a_targets_key_that_is_elsewhere(
    keys: Run, invoke: Run, device: Callable[[], Trusted], data: Path, tmp_path: Path
) -> None:
    keys("export", "targets", tmp_path / "stick", "--move")
    fleet = FleetService(data)
    digest = push(fleet, make_bundle(tmp_path / "net", as_directory=True)).digest
    enroll(fleet, "pi")
    fleet.groups.put(ADMIN, "all", GroupOrder(selector=""))
    order = RolloutOrder(bundle=digest, group="all")
    with pytest.raises(ConflictError, match="not in the signed metadata"):
        fleet.rollouts.start(ADMIN, order)
    draft = tmp_path / "targets.json"
    keys("expiry", "targets", "--draft", draft)
    assert digest in invoke("fleet", "keys", "sign", draft).stdout
    invoke("fleet", "keys", "sign", draft, "--key", key_in(tmp_path / "stick", "targets"))
    keys("publish", draft)
    fleet.rollouts.start(ADMIN, order)
    fleet.close()
    device().target(target_path(digest))


def test_a_targets_key_made_elsewhere_signs_what_is_there(
    keys: Run, invoke: Run, device: Callable[[], Trusted], tmp_path: Path
) -> None:
    invoke("keygen", tmp_path / "own.key")
    root = tmp_path / "r.json"
    assert "must sign the targets" in keys("rotate", "targets", "--public", tmp_path / "own.key.pub", code=9).stderr
    keys("rotate", "targets", "--public", tmp_path / "own.key.pub", "--draft", root)
    targets = tmp_path / "r.targets.json"
    assert "must sign" in keys("publish", root, targets, code=9).stderr
    invoke("fleet", "keys", "sign", targets, "--key", tmp_path / "own.key")
    keys("publish", root, targets)
    device()


def test_keys_are_made_before_the_service_with_the_root_elsewhere(invoke: Run, tmp_path: Path) -> None:
    data = tmp_path / "fresh"
    invoke("fleet", "keys", "--data", data, "init", "--algorithm", "ecdsa", "--root-to", tmp_path / "stick")
    assert key_in(tmp_path / "stick", "root").stat().st_mode & 0o777 == 0o600
    assert len(list((data / "trust" / "keys").glob("*.pem"))) == 3
    assert "has its keys already" in invoke("fleet", "keys", "--data", data, "init", code=17).stderr
    fleet = FleetService(data)
    assert json.loads(fleet.trust.file("1.root.json"))["signed"]["version"] == 1
    fleet.close()


def test_wrong_uses_are_told(keys: Run, invoke: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    assert "holds no fleet" in invoke("fleet", "keys", "--data", tmp_path / "none", code=17).stderr
    assert not (tmp_path / "none").exists()
    assert "cannot read the key" in keys("expiry", "root", "--key", tmp_path / "none", code=2).stderr
    assert "no private key" in keys("expiry", "root", "--key", tmp_path / "junk", code=2).stderr
    assert "no public key" in keys("rotate", "root", "--public", tmp_path / "junk", code=2).stderr
    assert "signs it every day" in keys("rotate", "timestamp", "--public", _public(invoke, tmp_path), code=2).stderr
    assert "every day" in keys("export", "snapshot", tmp_path / "stick", "--move", code=2).stderr
    assert "no signed metadata" in keys("publish", tmp_path / "junk", code=9).stderr
    assert "cannot be read" in keys("publish", tmp_path / "none", code=2).stderr
    (tmp_path / "there.json").write_text("{}")
    keys("export", "root", tmp_path / "stick", "--move")
    assert "exists" in keys("expiry", "root", "--draft", tmp_path / "there.json", code=10).stderr


def _public(invoke: Run, folder: Path) -> Path:
    invoke("keygen", folder / "any.key")
    return folder / "any.key.pub"
