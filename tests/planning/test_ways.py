from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from edgekit.bundle.manifest import Exit, ExitPoint, Manifest, Variant
from edgekit.devices.device import load_device
from edgekit.devices.latency import predict
from edgekit.errors import DeviceError, PlanError
from edgekit.planning.choose import bound_ms, plans
from edgekit.planning.link import Link
from edgekit.planning.plan import Way, evaluate
from edgekit.planning.ways import power_of, roofline_ms, ways
from tests.planning.conftest import IMAGE, LOGITS, make_manifest, make_part

PI = load_device("raspberry-pi-5")


def _by_name(found: tuple[Way, ...]) -> dict[str, Way]:
    return {way.variant: way for way in found}


def test_each_variant_becomes_a_way_in_order(manifest: Manifest) -> None:
    found = ways(manifest, PI)
    assert [way.variant for way in found] == ["whole", "split", "cascade", "three"]
    assert [way.tiers for way in found] == [
        ("device",),
        ("device", "edge"),
        ("device", "edge"),
        ("device", "edge", "cloud"),
    ]
    assert [way.is_local for way in found] == [True, False, False, False]
    assert [way.answer_bytes for way in found] == [0, 4000, 4000, 4000]


def test_parts_are_predicted_on_the_device_of_their_tier(manifest: Manifest) -> None:
    split = _by_name(ways(manifest, PI))["split"]
    head, tail = manifest.part("head"), manifest.part("tail")
    assert split.stages[0].latency_ms == predict(head.segments, PI, "onnx").latency_ms
    assert split.stages[1].latency_ms == predict(tail.segments, load_device("x86-server"), "onnx").latency_ms
    slower = _by_name(ways(manifest, PI, {"edge": load_device("raspberry-pi-4")}))["split"]
    assert slower.stages[1].latency_ms == predict(tail.segments, load_device("raspberry-pi-4"), "onnx").latency_ms
    one_thread = _by_name(ways(manifest, PI, threads={"device": 1}))["split"]
    assert one_thread.stages[0].latency_ms == predict(head.segments, PI, "onnx", 1).latency_ms


def test_what_was_measured_wins(manifest: Manifest) -> None:
    measured = {"head": 1.25, "encode:early": 0.5, "decode:early": 0.25}
    split = _by_name(ways(manifest, PI, measured=measured))["split"]
    assert split.stages[0].latency_ms == 1.25
    assert (split.crossings[0].encode_ms, split.crossings[0].decode_ms) == (0.5, 0.25)


def test_energy_is_counted_above_idle_and_on_the_device_alone(manifest: Manifest) -> None:
    split = _by_name(ways(manifest, PI, measured={"head": 10.0, "tail": 10.0}))["split"]
    assert split.stages[0].energy_mj == pytest.approx(10.0 * (11.0 - 3.6))
    assert split.stages[1].energy_mj == 0


def test_a_rates_drop_is_the_variants_whole_drop(manifest: Manifest) -> None:
    found = _by_name(ways(manifest, PI))
    links = {("device", "edge"): Link(10, 20), ("edge", "cloud"): Link(1000, 5)}
    by_rates = {(plan.variant, plan.rates): plan.drop for plan in plans(tuple(found.values()), links)}
    assert by_rates["split", (0,)] == pytest.approx(0.2)
    assert by_rates["split", (2,)] == pytest.approx(2.0)
    assert by_rates["whole", ()] == pytest.approx(0.1)
    # Both codecs' losses on top of the uncoded variant's.
    assert by_rates["three", (1, 1)] == pytest.approx(0.1 + 0.4 + 0.5)
    # The exit's curve was measured at the finest rate.
    assert by_rates["cascade", (0,)] == pytest.approx(0.8)


def test_an_exit_counts_at_its_own_threshold(manifest: Manifest) -> None:
    found = _by_name(ways(manifest, PI))
    assert found["cascade"].local_share == 0.4
    assert found["cascade"].exit_ms > 0
    assert found["cascade"].exit_bytes == 150_000
    assert found["split"].local_share == 0


def test_memory_counts_weights_and_activations(manifest: Manifest) -> None:
    assert _by_name(ways(manifest, PI))["split"].stages[0].memory_bytes == 150_000


def test_a_way_past_the_edge_crosses_from_the_device_to_the_cloud(manifest: Manifest) -> None:
    data = manifest.model_dump(mode="json")
    for part in data["parts"]:
        part["tier"] = "cloud" if part["name"] == "tail" else part["tier"]
    past = _by_name(ways(Manifest.model_validate(data), PI))["split"]
    assert past.crossings[0].hop == ("device", "cloud")


def test_a_part_without_costs_must_be_measured(new_manifest: Callable[..., Manifest]) -> None:
    bare = new_manifest(has_costs=False)
    with pytest.raises(PlanError, match="'main'"):
        ways(bare, PI)
    assert ways(bare, PI, measured={"main": 12.0})[0].stages[0].latency_ms == 12.0


def test_a_tier_without_a_profile_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="tier edge"):
        ways(manifest.model_copy(update={"tiers": {}}), PI)


def test_a_format_that_the_device_cannot_run_is_refused(manifest: Manifest) -> None:
    with pytest.raises(DeviceError, match="onnx"):
        ways(manifest, replace(PI, formats={}))


def test_power_is_above_idle_and_the_profile_may_state_the_radio() -> None:
    power = power_of(PI)
    assert power is not None
    assert power.compute_w == pytest.approx(11.0 - 3.6)
    assert power.idle_w == 0
    stated = power_of(replace(PI, power_w={"load": 10.0, "radio": 3.0, "wait": 0.25}))
    assert stated is not None
    assert (stated.compute_w, stated.radio_w, stated.idle_w) == (10.0, 3.0, 0.25)
    assert power_of(replace(PI, power_w={})) is None


def test_no_plan_beats_its_bound(manifest: Manifest) -> None:
    found = ways(manifest, PI)
    links = {("device", "edge"): Link(10, 20), ("edge", "cloud"): Link(1000, 5)}
    for plan in plans(found, links):
        bound = bound_ms(_by_name(found)[plan.variant], plan.rates, links)
        assert 0 < bound < plan.latency_ms


def test_the_roofline_takes_the_slower_of_computing_and_memory(manifest: Manifest) -> None:
    assert roofline_ms(manifest.part("head"), PI) == pytest.approx(1e3 * 0.2e9 / 153.6e9)
    data = manifest.part("head").model_dump()
    data["segments"][0]["bytes_moved"] = 56e6
    assert roofline_ms(type(manifest.part("head")).model_validate(data), PI) == pytest.approx(10.0, rel=0.01)


def test_exits_on_the_device_cost_what_comes_so_far() -> None:
    """Half leave at the exit: the second stage counts half, its memory whole."""
    whole, first, second, early = (
        make_part(name, "device", gflop, IMAGE, LOGITS)
        for name, gflop in (("whole", 2.0), ("one", 1.0), ("two", 1.0), ("early", 0.01))
    )
    leaves = Exit(
        part="early", temperature=1.0, threshold=0.9, curve=(ExitPoint(threshold=0.9, answered=0.5, drop=0.2),)
    )
    base = make_manifest()
    variants = (
        Variant(name="whole", parts=("whole",)),
        Variant(name="exits", parts=("one", "two"), exits=(leaves,), shares=(0.6,), drop=0.2),
    )
    manifest = base.model_copy(
        update={"parts": (whole, first, second, early), "variants": variants, "codecs": (), "tiers": {}}
    )
    measured = {"whole": 20.0, "one": 10.0, "early": 1.0, "two": 10.0}
    plain, laddered = (evaluate(way, (), {}) for way in ways(manifest, PI, {}, measured))
    assert plain.latency_ms == 20.0
    assert laddered.latency_ms == pytest.approx(10.0 + 1.0 + 0.5 * 10.0)
    assert laddered.drop == 0.2
    assert laddered.memory_bytes == sum(part.size_bytes + part.peak_activation_bytes for part in (first, second, early))
