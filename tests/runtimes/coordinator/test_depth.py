"""Exits one behind the other on the device, in a bundle of three stages that double what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from edgekit.bundle.manifest import Exit, Manifest, Part, Postprocess, Provenance, TensorEntry, Variant
from edgekit.runtimes.coordinator.depth import Ladder

CLASSES = 3
CALLS: list[tuple[str, int]] = []


def entry(name: str, batch: str | int) -> TensorEntry:
    return TensorEntry(name=name, dtype="float32", shape=(batch, CLASSES))


def part(name: str, before: str, after: str, batch: str | int) -> Part:
    return Part(
        file=f"{name}.onnx",
        size_bytes=1,
        sha256="0" * 64,
        name=name,
        format="onnx",
        precision="fp32",
        inputs=(entry(before, batch),),
        outputs=(entry(after, batch),),
    )


def manifest(batch: str | int = "batch", shares: tuple[float, ...] = (), threshold: float = 0.9, **changes) -> Manifest:
    exits = tuple(Exit(part=f"exit-{k}", temperature=1.0, threshold=threshold) for k in (1, 2))
    settings = {"parts": ("one", "two", "three"), "exits": exits, "shares": shares} | changes
    return Manifest(
        name="net",
        task="classification",
        device="raspberry-pi-4",
        parts=(
            part("one", "x", "a", batch),
            part("two", "a", "b", batch),
            part("three", "b", "logits", batch),
            part("exit-1", "a", "logits", batch),
            part("exit-2", "b", "logits", batch),
        ),
        variants=(Variant(name="exits", **settings),),
        postprocess=Postprocess(kind="classification", output="logits"),
        provenance=Provenance(
            edgekit="0", versions={}, source_kind="callable", source="net", source_sha256="0" * 64, recipe={}
        ),
    )


def run_part(part: Part, values, last):
    """A stage doubles; an exit gives what it reads as its logits: deeper is surer."""
    value = values[part.inputs[0].name]
    CALLS.append((part.name, len(value)))
    return {part.outputs[0].name: value if part.name.startswith("exit") else 2 * value}


def ladder(**settings) -> Ladder:
    CALLS.clear()
    made = manifest(**settings)
    return Ladder(made, made.variants[0], run_part)


def logits(*heights: float) -> np.ndarray:
    return np.array([[height, 0, 0] for height in heights], np.float32)


def test_each_sample_of_a_batch_leaves_where_it_is_sure_and_answers_in_place() -> None:
    # Behind the first stage 6, 2 and 0.2: the first is sure there, the second one later, the last never.
    x = logits(3.0, 1.0, 0.1)
    result = ladder().run({"x": x})
    assert result.left == (1, 1, 1)
    np.testing.assert_array_equal(result.outputs["logits"], [[6, 0, 0], [4, 0, 0], [np.float32(0.8), 0, 0]])
    assert CALLS == [("one", 3), ("exit-1", 3), ("two", 2), ("exit-2", 2), ("three", 1)]
    assert not result.exited


def test_nothing_runs_behind_the_exit_where_all_have_left() -> None:
    result = ladder().run({"x": logits(3.0, 4.0)})
    assert (result.left, result.exited) == ((2, 0, 0), True)
    assert [name for name, _ in CALLS] == ["one", "exit-1"]
    assert result.sure == pytest.approx(1 / (1 + 2 * np.exp(-6.0)))


def test_a_fixed_batch_leaves_together_with_the_least_sure() -> None:
    result = ladder(batch=2).run({"x": logits(3.0, 1.0)})
    assert result.left == (0, 1, 0)
    np.testing.assert_array_equal(result.outputs["logits"], [[12, 0, 0], [4, 0, 0]])


def test_no_batch_costs_more_than_its_schedule_and_the_least_sure_go_deepest() -> None:
    x = logits(0.01, 0.02, 0.3, 0.4)
    result = ladder(shares=(0.5, 0.25)).run({"x": x})
    assert (result.left, result.held_back) == ((2, 1, 1), 3)
    depth = result.outputs["logits"][:, 0] / x[:, 0]
    np.testing.assert_allclose(depth, [8, 4, 2, 2], rtol=1e-5)


def test_over_time_no_window_costs_more_than_its_schedule() -> None:
    stairs = ladder(shares=(0.5, 0.25))
    deep = [stairs.run({"x": logits(0.01)}).left for _ in range(128)]
    for start in (0, 64):
        window = np.array(deep[start : start + 64]).sum(0)
        assert window.tolist() == [32, 16, 16]
    assert stairs.run({"x": logits(9.0)}).left == (1, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("one", "three")}, "2 exits for 2 parts"),
        ({"shares": (0.2, 0.4)}, "never rising"),
        ({"shares": (0.2,)}, "never rising"),
        ({"exits": (Exit(part="nix", temperature=1.0, threshold=0.9),)}, "known"),
    ],
)
def test_a_bundle_whose_exits_do_not_fit_its_parts_is_refused(changes, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        manifest(**changes)
