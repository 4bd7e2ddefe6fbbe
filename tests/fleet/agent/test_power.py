"""The power is cut before every call that changes the disk, and the agent started from what would lie there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from edgekit.bundle.manifest import Tier
from edgekit.errors import OutputError, SessionError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.runtime import NoRuntime
from edgekit.fleet.agent.slots import is_whole
from edgekit.fleet.agent.update import Updater
from tests.fleet.agent.fleets import LocalFleet, trial
from tests.fleet.agent.volume import CuttingDisk, PowerCut, QuickDisk, all_survivors


class Answering(NoRuntime):
    """Notes what answers, and for whom it is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.bundle: Path | None = None
        self.kept: list[Path] = []

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        self.bundle, self.kept = bundle, list(kept)


class Refusing(Answering):
    """Does not come up with one bundle."""

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest

    def use(self, bundle: Path | None, kept: Sequence[Path] = ()) -> None:
        if bundle is not None and bundle.name == self.digest:
            raise SessionError("the node ended with exit code 1")
        super().use(bundle, kept)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: what survives is the model's to say, and thousands of files are made."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def fleet(bundles: dict[str, Path]) -> Callable[[], LocalFleet]:
    return lambda: LocalFleet(*bundles.values())


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    home = Home(tmp_path / "empty", QuickDisk())
    home.make()
    return home.path


@pytest.fixture
def start(tmp_path: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]) -> Path:
    """A home that answers with the old bundle, and had the third before."""
    home = Home(tmp_path / "start", QuickDisk())
    home.make()
    updater, _ = agent(home)
    updater.start()
    for name in ("third", "old"):
        updater.follow(fleet(), digests[name])
        updater.heard()
    return home.path


def agent(home: Home, tier: Tier = "device", runtime: Answering | None = None) -> tuple[Updater, Answering]:
    answering = runtime or Answering()
    return Updater(home, tier, answering, trial), answering


def check_answers(path: Path, allowed: set[str | None], tier: Tier = "device") -> tuple[Updater, Answering]:
    """What lies there needs no mending: the state can be read, and all that it names is whole. Started there, the agent
    answers at once, from a verified slot that state and link name."""
    home = Home(path, QuickDisk())
    home.make()
    assert all(is_whole(home.slot(one), one) for one in home.read_state().named)
    updater, answering = agent(home, tier)
    updater.start()
    active = updater.state.active
    assert active in allowed
    assert home.read_state().active == active
    if active is None:
        assert answering.bundle is None and not home.current.exists()
    else:
        assert is_whole(home.slot(active), active) and trial(home.slot(active), "device").is_right
        assert answering.bundle == home.slot(active) == home.current.resolve()
    return updater, answering


def check_update_completes(updater: Updater, answering: Answering, fleet: LocalFleet, digest: str) -> None:
    updater.follow(fleet, digest)
    updater.heard()
    updater.follow(fleet, digest)
    assert updater.state.active == digest and updater.state.confirmed and updater.state.heard
    assert answering.bundle is not None and is_whole(answering.bundle, digest)
    assert {path.name for path in updater.home.slots.iterdir()} == updater.state.named
    assert not list(updater.home.part.iterdir())


def sweep(
    start: Path, work: Callable[[Updater], None], tier: Tier = "device", runtime: Callable[[], Answering] = Answering
) -> Iterator[Path]:
    """What is left of a copy of `start` after a cut at every call of `work`."""

    def run(cut: int | None) -> CuttingDisk:
        path = start.with_name("run")
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(start, path, symlinks=True)
        disk = CuttingDisk(path, cut)
        try:
            updater, _ = agent(Home(path, disk), tier, runtime())
            updater.start()
            work(updater)
            assert cut is None
        except PowerCut:
            pass
        assert disk.agrees()
        return disk

    return all_survivors(run, start.with_name("after"))


def test_power_cut_at_every_step_of_an_update_leaves_a_verified_slot_answering(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    def update(updater: Updater) -> None:
        updater.follow(fleet(), digests["new"])
        updater.heard()

    found = set()
    for path in sweep(start, update):
        updater, answering = check_answers(path, {digests["old"], digests["new"]})
        found.add(updater.state.active)
        check_update_completes(updater, answering, fleet(), digests["new"])
    assert found == {digests["old"], digests["new"]}


def test_power_cut_at_every_step_of_the_first_installation_leaves_nothing_or_all_of_it(
    empty: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    for path in sweep(empty, lambda updater: updater.follow(fleet(), digests["new"])):
        updater, answering = check_answers(path, {None, digests["new"]})
        check_update_completes(updater, answering, fleet(), digests["new"])


def test_power_cut_at_every_step_of_falling_back_leaves_the_old_bundle_or_one_that_answers_right(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    def fail(updater: Updater) -> None:
        updater.follow(fleet(), digests["new"])
        assert updater.state.active == digests["old"] and digests["new"] in updater.state.refused

    for path in sweep(start, fail, runtime=lambda: Refusing(digests["new"])):
        updater, answering = check_answers(path, {digests["old"], digests["new"]})
        check_update_completes(updater, answering, fleet(), digests["third"])


def test_power_cut_while_a_wrong_bundle_is_tried_leaves_the_old_one(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    for path in sweep(start, lambda updater: updater.follow(fleet(), digests["wrong"])):
        updater, answering = check_answers(path, {digests["old"]})
        updater.follow(fleet(), digests["wrong"])
        assert updater.state.active == digests["old"]
        check_update_completes(updater, answering, fleet(), digests["new"])


def test_power_cut_at_every_step_back_to_the_bundle_before(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    for path in sweep(start, lambda updater: updater.follow(fleet(), digests["third"])):
        updater, answering = check_answers(path, {digests["old"], digests["third"]})
        check_update_completes(updater, answering, fleet(), digests["third"])


def test_power_cut_while_a_server_keeps_the_old_beside_the_new_and_then_lets_it_go(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str]
) -> None:
    old, new = digests["old"], digests["new"]

    def both(updater: Updater) -> None:
        updater.follow(fleet(), new, [old])
        updater.follow(fleet(), new, [])

    for path in sweep(start, both, tier="cloud"):
        updater, answering = check_answers(path, {old, new}, tier="cloud")
        updater.follow(fleet(), new, [old])
        assert [one.name for one in answering.kept] == [old] and is_whole(answering.kept[0], old)
        check_update_completes(updater, answering, fleet(), new)
        assert not answering.kept


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_disk_that_fails_from_any_step_on_keeps_nothing_from_answering(
    start: Path, fleet: Callable[[], LocalFleet], digests: dict[str, str], number: int
) -> None:
    def run(cut: int | None) -> tuple[CuttingDisk, Updater, Answering]:
        path = start.with_name("run")
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(start, path, symlinks=True)
        disk = CuttingDisk(path, cut, fail=lambda: OSError(number, "the disk"))
        updater, answering = agent(Home(path, disk))
        updater.start()
        with contextlib.suppress(OutputError):
            updater.follow(fleet(), digests["new"])
            updater.heard()
        return disk, updater, answering

    calls = len(run(None)[0].calls)
    for cut in range(calls):
        disk, updater, answering = run(cut)
        assert answering.bundle is not None and answering.bundle.name == updater.state.active
        assert is_whole(answering.bundle, answering.bundle.name)
        disk.cut = None  # it is mended, and nobody started the agent again
        check_update_completes(updater, answering, fleet(), digests["new"])
        check_answers(updater.home.path, {digests["new"]})
