"""Plans from what devices measured: chosen, told, kept, and refused where there is nothing to choose by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.bundle.manifest import Manifest
from edgekit.devices.segment import Segment
from edgekit.errors import AbsentError, ConflictError, ForbiddenError
from edgekit.fleet.service import FleetService
from edgekit.fleet.service import plans as module
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock
from tests.fleet.town import ADA, Town, push

FAST, SLOW = (100.0, 4.0, 0.0), (0.2, 300.0, 0.01)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`split`: nearly all of the work in the tail, or all of it on the device."""
    folder = tmp_path_factory.mktemp("planned")
    work = {"model": 8e9, "head": 5e7, "tail": 8e9}
    segments = {part: (Segment(part, "conv", "fp32", flops, 4e6),) for part, flops in work.items()}
    return {
        "split": make_bundle(folder / "split", edge=True, segments=segments, as_directory=True),
        "local": make_bundle(folder / "local", segments=segments, as_directory=True),
        "unpriced": make_bundle(folder / "unpriced", scale=5.0, edge=True, as_directory=True),
    }


@pytest.fixture
def town(tmp_path: Path, database_url: str, clock: SettableClock) -> Iterator[Town]:
    service = FleetService(tmp_path / "data", database_url, now=clock)
    yield Town(service, clock)
    service.close()


def run(town: Town, bundle: Path, *names: str, profile: str = "raspberry-pi-5") -> str:
    """Devices that run it."""
    digest = push(town.service, bundle)
    for name in names:
        town.add(name, profile=profile).running = digest
    with town.service.database.write() as session:
        for name in names:
            row = session.get(Device, town.things[name].id)
            assert row is not None
            row.wanted, row.changed_tick = digest, town.service.database.tick(session)
    town.service.devices.directory.refresh()
    town.follow()
    return digest


def report(
    town: Town, name: str, digest: str, link: tuple[float, float, float] | None, count: int = 10,
    plan: str = "split", ms: float = 0.0,
) -> None:  # fmt: skip
    for _ in range(count):
        town.clock.advance(30)
        town.window(name, digest, latencies=[ms] * 20 if ms else [], link=link, plan=plan)
    town.follow([name])


def later(town: Town) -> int:
    """The next round of the pass over the fleet."""
    town.clock.advance(module.EVERY_S)
    changed = town.service.plans.step()
    while town.service.plans._after:
        changed += town.service.plans.step()
    return changed


def test_a_fast_link_takes_the_work_away_and_a_slow_one_brings_it_back(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["split"], "pi-1")
    report(town, "pi-1", digest, FAST)
    before = town.device("pi-1").generation
    assert later(town) == 1
    order = town.service.devices.desired(town.things["pi-1"].id).plan
    assert order is not None and (order.digest, order.variant) == (digest, "split")
    assert "expected" in order.why and "local" in order.why
    assert town.device("pi-1").generation == before + 1
    assert later(town) == 0, "the same is not told again"
    report(town, "pi-1", digest, SLOW, count=80)
    assert later(town) == 1
    order = town.service.devices.desired(town.things["pi-1"].id).plan
    assert order is not None and order.variant == "local"


def test_a_link_that_swings_does_not_make_the_plan_swing(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["split"], "pi-1")
    report(town, "pi-1", digest, FAST)
    later(town)
    changes = 0
    for index in range(12):
        report(town, "pi-1", digest, FAST if index % 2 else SLOW, count=6)
        changes += later(town)
    assert changes <= 1


def test_the_view_tells_link_latency_choice_and_why(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["split"], "pi-1")
    report(town, "pi-1", digest, (50.0, 10.0, 0.0), count=5)
    report(town, "pi-1", digest, (20.0, 30.0, 0.0), count=5)
    view = town.service.plans.view("pi-1")
    assert view.link is not None
    assert (view.link.windows, view.link.bandwidth_mbps, view.link.slow_bandwidth_mbps) == (10, 35.0, 20.0)
    assert (view.link.rtt_ms, view.link.slow_rtt_ms) == (20.0, 30.0)
    assert view.profile == "raspberry-pi-5" and view.bundle == "net"
    assert view.best is not None and view.order is None
    assert [choice.variant for choice in view.choices] == ["split", "local"]
    assert view.choices[0].latency_ms < view.choices[0].slow_ms
    assert view.choices[1].latency_ms == view.choices[1].slow_ms, "no link makes it slower"


def test_a_slow_machine_hands_over_more(town: Town, bundles: dict[str, Path]) -> None:
    """Over a link on which its profile would keep the work on the device."""
    digest = run(town, bundles["split"], "pi-1", "pi-2")
    local_ms = next(
        choice.latency_ms for choice in _seen(town, "pi-1", digest, 0.0).choices if choice.variant == "local"
    )
    link = (1000.0, 3 * local_ms, 0.0)
    for name, factor in (("pi-1", 1.0), ("pi-2", 10.0)):
        report(town, name, digest, link, count=30, plan="local", ms=factor * local_ms)
    own, slow = town.service.plans.view("pi-1"), town.service.plans.view("pi-2")
    assert own.scale == pytest.approx(1.0, rel=0.1) and slow.scale == pytest.approx(10.0, rel=0.1)
    assert slow.scale_samples == 600 and slow.measured_ms == pytest.approx(10 * local_ms, rel=0.1)
    assert own.best is not None and own.best.variant == "local"
    assert slow.best is not None and slow.best.variant == "split"


def _seen(town: Town, name: str, digest: str, ms: float) -> module.PlanView:
    report(town, name, digest, FAST, ms=ms, plan="local")
    return town.service.plans.view(name)


def test_replan_takes_the_best_at_once(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["split"], "pi-1")
    report(town, "pi-1", digest, FAST)
    view = town.service.plans.replan(ADA, "pi-1")
    assert view.order == view.best and view.order is not None and view.order.variant == "split"
    assert town.service.core.events(subject="pi-1").items[0].actor == "ada"
    with pytest.raises(ForbiddenError):
        town.service.plans.replan(Actor("vi", "viewer"), "pi-1")


@pytest.mark.parametrize(
    ("bundle", "link", "note"),
    [
        ("split", None, "no link was measured in the last hour: it decides by itself"),
        ("local", FAST, "there is one way to run it"),
        ("unpriced", FAST, "states no costs and was not measured"),
    ],
)
def test_without_anything_to_choose_by_nothing_is_told(
    town: Town, bundles: dict[str, Path], bundle: str, link: tuple[float, float, float] | None, note: str
) -> None:
    digest = run(town, bundles[bundle], "pi-1")
    report(town, "pi-1", digest, link, ms=20.0)
    view = town.service.plans.view("pi-1")
    assert note in view.note and view.best is None and view.choices == ()
    assert later(town) == 0
    with pytest.raises(ConflictError, match="no plan for pi-1"):
        town.service.plans.replan(ADA, "pi-1")
    assert town.device("pi-1").plan is None


def test_a_device_that_runs_nothing_has_no_plan(town: Town) -> None:
    town.add("pi-1")
    assert town.service.plans.view("pi-1").note == "it runs nothing"
    with pytest.raises(AbsentError):
        town.service.plans.view("nobody")


def test_a_machine_without_a_profile_is_taken_for_the_bundles(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["split"], "pi-1", profile="something-else")
    report(town, "pi-1", digest, FAST)
    assert town.service.plans.view("pi-1").profile == "raspberry-pi-5"


def test_a_limit_that_nothing_meets_is_named(town: Town, tmp_path: Path) -> None:
    segments = {part: (Segment(part, "conv", "fp32", 1e8, 4e6),) for part in ("model", "head", "tail")}
    path = make_bundle(tmp_path / "lossy", edge=True, segments=segments, drop=7.5, as_directory=True)
    digest = run(town, path, "pi-1")
    report(town, "pi-1", digest, FAST)
    assert "no plan meets the limit on drop" in town.service.plans.view("pi-1").note


def test_the_pass_takes_everybody_a_few_at_a_time(
    town: Town, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE", 2)
    names = [f"pi-{index}" for index in range(5)]
    digest = run(town, bundles["split"], *names)
    for name in names:
        report(town, name, digest, FAST, count=3)
    town.clock.advance(module.EVERY_S)
    assert [town.service.plans.step() for _ in range(4)] == [2, 2, 1, 0]
    assert {town.device(name).plan["variant"] for name in names if town.device(name).plan} == {"split"}  # type: ignore[index]


def test_bundles_with_one_way_cost_the_pass_nothing(town: Town, bundles: dict[str, Path]) -> None:
    digest = run(town, bundles["local"], "pi-1")
    report(town, "pi-1", digest, FAST)
    with town.service.database.read() as session:
        assert town.service.plans._with_a_choice(session) == []


def test_the_manifest_in_a_test_is_a_real_one(bundles: dict[str, Path]) -> None:
    manifest = Manifest.model_validate_json((bundles["split"] / "manifest.json").read_bytes())
    assert [variant.name for variant in manifest.variants] == ["local", "split"]
