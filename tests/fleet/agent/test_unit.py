"""The agent as a systemd service, and as a person sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli.main import cli
from edgekit.errors import OutputError, UsageError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.orders import write_orders
from edgekit.fleet.agent.reached import note_reached
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.status import describe
from edgekit.fleet.agent.unit import NAME, UnitOptions, _give, install_unit, unit_text
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.protocol.agents import Desired, PlanOrder
from edgekit.fleet.protocol.windows import Window
from tests.fleet.agent.fleets import LocalFleet, trial

IDENTITY = {"fleet": "https://fleet:8080", "device": "0" * 32, "name": "pi-1", "token": "ekd_secret", "tier": "device"}


def test_unit_lets_the_agent_do_what_it_needs_and_no_more() -> None:
    text = unit_text(UnitOptions(Path("/var/lib/edgekit"), serve=8101), groups=("video", "render"))
    lines = text.splitlines()
    for wanted in (
        "User=edgekit",
        "SupplementaryGroups=video render",
        "StateDirectory=edgekit",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "MemoryMax=80%",
        "CapabilityBoundingSet=",
        "Restart=always",
    ):
        assert wanted in lines
    assert "agent run --home /var/lib/edgekit --serve 8101" in text
    assert "PrivateDevices" not in text  # accelerators are devices


def test_folder_elsewhere_is_made_writable_and_an_environment_at_home_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", "/home/pi/venv")
    lines = unit_text(UnitOptions(Path("/data/edgekit")), groups=()).splitlines()
    assert "ReadWritePaths=/data/edgekit" in lines and "ProtectHome=read-only" in lines
    assert not any(line.startswith(("StateDirectory", "SupplementaryGroups")) for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(unit_text(UnitOptions(Path("/var/lib/edgekit"), serve=8101, user="root")))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if NAME in line and "nothing to do" not in line]
    assert not ours, ours


@pytest.mark.parametrize(
    "settings",
    [
        {"user": "root; rm -rf /"},
        {"user": "Ünal"},
        {"memory_max": "lots"},
        {"memory_max": "1G\nExecStart=/bin/sh"},
        {"key": Path("/a b/key.pub")},
        {"home": Path("/var/lib/edge%h")},
    ],
)
def test_what_systemd_would_read_otherwise_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        UnitOptions(**{"home": Path("/var/lib/edgekit"), **settings})  # type: ignore[arg-type]


def test_unit_is_written_where_it_was_told_to(tmp_path: Path) -> None:
    options = UnitOptions(tmp_path / "home")
    assert install_unit(options, tmp_path) == [f"wrote {tmp_path / NAME}"]
    assert (tmp_path / NAME).read_text() == unit_text(options)
    with pytest.raises(OutputError):
        install_unit(options, tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may install services")
def test_services_are_for_root_to_install() -> None:
    with pytest.raises(UsageError, match="root's"):
        install_unit(UnitOptions(Path("/var/lib/edgekit")))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["agent", *arguments])
    return result.exit_code, result.output


def test_unit_is_printed_and_nothing_else() -> None:
    code, said = run("install", "--print", "--home", "/var/lib/edgekit")
    assert code == 0 and said == unit_text(UnitOptions(Path("/var/lib/edgekit")))


@pytest.fixture
def enrolled(home: Home) -> Home:
    (home.path / "identity.json").write_text(json.dumps(IDENTITY))
    return home


def test_status_says_what_a_person_wants_to_know(
    enrolled: Home, bundles: dict[str, Path], digests: dict[str, str]
) -> None:
    fleet = LocalFleet(*bundles.values())
    updater = Updater(enrolled, "device", NoRuntime(), trial)
    updater.start()
    updater.follow(fleet, digests["old"])
    updater.heard()
    updater.follow(fleet, digests["wrong"])
    write_orders(enrolled, Desired(generation=1, plan=PlanOrder(digest=digests["old"], variant="local", why="slow")))
    Ring(enrolled).append(Window(sequence=0, started_at=0, seconds=1, digest=digests["old"]))
    (enrolled.part / "x").write_bytes(bytes(2_500_000))
    code, said = run("status", "--home", str(enrolled.path))
    assert code == 0
    for wanted in (
        "pi-1",
        "https://fleet:8080",
        "does not run",
        f"net {digests['old'][:12]}",
        "4 of 4 right",
        "2.5 MB are here",
        "local at rate 0: slow",
        "1 wait",
        f"{digests['wrong'][:12]}: it answers wrong",
    ):
        assert wanted in said, wanted
    assert "ekd_secret" not in said
    code, said = run("status", "--home", str(enrolled.path), "--json")
    found = json.loads(said)
    assert found["state"]["active"] == digests["old"] and found["windows"]["waiting"] == 1
    assert "ekd_secret" not in said


def test_status_tells_whether_the_agent_runs(enrolled: Home) -> None:
    with enrolled.hold():
        assert describe(enrolled).is_running
    assert not describe(enrolled).is_running


def test_status_tells_whether_the_fleet_is_reached(enrolled: Home) -> None:
    note_reached(enrolled, 1.8e9)
    note_reached(enrolled, 1.9e9)  # nothing changed since
    with enrolled.hold():
        assert "since 2027-01-15 08:00:00 UTC" in run("status", "--home", str(enrolled.path))[1]
        note_reached(enrolled, 1.9e9, "this device is not known here")
        _, said = run("status", "--home", str(enrolled.path))
        assert "not since 2030-03-17 17:46:40 UTC: this device is not known here" in said
        _, said = run("status", "--home", str(enrolled.path), "--json")
        assert json.loads(said)["reached"] == {"since": 1.9e9, "trouble": "this device is not known here"}
    assert "not known" not in run("status", "--home", str(enrolled.path))[1]  # nobody asks while no agent runs


def test_status_of_damaged_files_says_so(enrolled: Home) -> None:
    (enrolled.path / "state.json").write_text("{")
    assert "cannot be read" in describe(enrolled).trouble
    (enrolled.path / "identity.json").write_text("{")
    code, said = run("status", "--home", str(enrolled.path))
    assert code == 0 and "is damaged" in said


def test_status_of_a_folder_that_was_never_enrolled_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not enrolled"):
        describe(Home(tmp_path))


def test_an_interpreter_where_systemd_reads_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/opt/my environment/bin/python")
    with pytest.raises(UsageError, match="my environment"):
        UnitOptions(Path("/var/lib/edgekit"))


def test_a_link_to_a_file_of_somebody_else_is_given_away_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is put there after the look at it: the system is told not to follow any."""
    secret, home, given = tmp_path / "secret", tmp_path / "home", list[tuple[str, bool]]()
    secret.write_text("root's")
    (home / "slots").mkdir(parents=True)
    (home / "slots" / "link").symlink_to(secret)
    (home / "plain").write_text("")

    def chown(
        path: int | str, user: int, group: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        if isinstance(path, str):
            assert dir_fd is not None and "/" not in path
            given.append((path, follow_symlinks))

    monkeypatch.setattr("os.chown", chown)
    _give(home, os.getuid())
    assert sorted(given) == [("link", False), ("plain", False), ("slots", False)]
