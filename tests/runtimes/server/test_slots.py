from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import SessionError
from edgekit.runtimes.server.slots import Rows, Slots

from .steps import HEARD, WIDTH, WINDOW, WRITTEN, open_step, specs

Arrays = Mapping[str, np.ndarray]
INPUTS, OUTPUTS = specs(HEARD)
AROUND = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def plain(feeds: Arrays) -> dict[str, np.ndarray]:
    """A step whose rows do not know of each other: nothing but elementwise arithmetic and sums in a fixed order."""
    before = feeds["before"][0]
    kept = sum(before[:, k : k + 1] * AROUND[k] for k in range(WIDTH))
    after = np.tanh(kept + feeds["x"].sum(1, keepdims=True)).astype(np.float32)
    return {"y": np.repeat(after[:, :1], 11, 1), "after": after[None]}


def test_a_slot_keeps_its_state_whoever_comes_and_goes(tmp_path: Path) -> None:
    with open_step(tmp_path, HEARD) as session:
        slots = Slots(session.run, session.inputs, session.outputs, HEARD, 4)
        generator = np.random.default_rng(0)
        states: dict[int, np.ndarray] = {}
        held: list[int] = []
        compared = 0
        for turn in range(60):
            if held and turn % 3 == 2:
                gone = held.pop(int(generator.integers(len(held))))
                slots.release(gone)
                del states[gone]
            while slots.free and generator.random() < 0.6:
                held.append(slots.take())
                states[held[-1]] = np.zeros((1, 1, WIDTH), np.float32)
            if not held:
                continue
            fed = generator.standard_normal((len(held), WINDOW)).astype(np.float32)
            slots.feed[: len(held)] = fed
            outputs = slots.step(held)
            for row, slot in enumerate(held):
                alone = session.run({"x": fed[row : row + 1], "before": states[slot]})
                states[slot] = alone["after"]
                np.testing.assert_array_equal(outputs["y"][row], alone["y"][0])
                compared += len(held) > 1
        assert compared > 50


def test_rows_that_do_not_mind_their_number_run_as_they_are() -> None:
    assert Slots(plain, INPUTS, OUTPUTS, HEARD, 8).rows == Rows(1, None)


def test_rows_that_mind_their_number_get_company() -> None:
    """As a kernel of its own for few rows does: another rounding below four of them."""

    def uneven(feeds: Arrays) -> dict[str, np.ndarray]:
        outputs = plain(feeds)
        if len(feeds["x"]) < 4:
            outputs["y"] = np.nextafter(outputs["y"], np.float32(9))
        return outputs

    slots = Slots(uneven, INPUTS, OUTPUTS, HEARD, 8)
    assert slots.rows == Rows(4, None)
    first, second = slots.take(), slots.take()
    slots.feed[:2] = 0.3
    together = slots.step([first, second])
    alone = Slots(uneven, INPUTS, OUTPUTS, HEARD, 8)
    alone.feed[:1] = 0.3
    np.testing.assert_array_equal(together["y"][:1], alone.step([alone.take()])["y"])
    assert together["y"].shape == (2, 11)


def test_a_runtime_that_takes_only_so_many_rows_is_given_no_more() -> None:
    """As one that plans its memory beforehand does."""

    def bounded(feeds: Arrays) -> dict[str, np.ndarray]:
        if len(feeds["x"]) > 6:
            raise SessionError("planned for 6 rows")
        return plain(feeds)

    slots = Slots(bounded, INPUTS, OUTPUTS, HEARD, 20)
    assert slots.rows == Rows(1, 5)
    held = [slots.take() for _ in range(20)]
    slots.feed[:20] = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    wanted = Slots(plain, INPUTS, OUTPUTS, HEARD, 20)
    wanted.feed[:20] = slots.feed[:20]
    np.testing.assert_array_equal(slots.step(held)["y"], wanted.step([wanted.take() for _ in range(20)])["y"])


def test_a_model_that_runs_no_row_at_all_is_an_error() -> None:
    def broken(feeds: Arrays) -> dict[str, np.ndarray]:
        raise SessionError("broken")

    with pytest.raises(SessionError, match="broken"):
        Slots(broken, INPUTS, OUTPUTS, HEARD, 8)


def test_sizes_beyond_the_first_few_are_probed_too() -> None:
    def uneven(feeds: Arrays) -> dict[str, np.ndarray]:
        outputs = plain(feeds)
        if len(feeds["x"]) < 40:
            outputs["y"] = np.nextafter(outputs["y"], np.float32(9))
        return outputs

    assert Slots(uneven, INPUTS, OUTPUTS, HEARD, 100).rows == Rows(64, None)


@pytest.mark.parametrize("minds", ["contents", "places"])
def test_rows_that_mind_each_other_run_one_by_one(minds: str) -> None:
    """A scale over the whole batch, as int8-dynamic finds it; a sum that starts with the first row."""
    runs: list[int] = []

    def mixing(feeds: Arrays) -> dict[str, np.ndarray]:
        runs.append(len(feeds["x"]))
        if minds == "contents":
            scale = max(1e-9, float(np.abs(feeds["x"]).max()) / 127)
            return plain({**feeds, "x": np.round(feeds["x"] / scale) * np.float32(scale)})
        outputs = plain(feeds)
        outputs["y"] = outputs["y"] + np.arange(len(feeds["x"]), dtype=np.float32)[:, None]
        return outputs

    slots = Slots(mixing, INPUTS, OUTPUTS, HEARD, 8)
    assert slots.rows == Rows(1, 1)
    runs.clear()
    held = [slots.take() for _ in range(3)]
    slots.feed[:3] = np.arange(3)[:, None]
    assert slots.step(held)["y"].shape == (3, 11)
    assert runs == [1, 1, 1]


def test_a_model_of_a_fixed_batch_runs_in_batches_of_that(tmp_path: Path) -> None:
    with open_step(tmp_path, HEARD, rows=2) as session:
        slots = Slots(session.run, session.inputs, session.outputs, HEARD, 5)
        assert slots.rows == Rows(2, 2)
        held = [slots.take() for _ in range(5)]
        fed = np.random.default_rng(3).standard_normal((5, WINDOW)).astype(np.float32)
        for _ in range(3):
            slots.feed[:5] = fed
            together = slots.step(held)["y"]
    with open_step(tmp_path, HEARD) as session:
        free = Slots(session.run, session.inputs, session.outputs, HEARD, 5)
        held = [free.take() for _ in range(5)]
        for _ in range(3):
            free.feed[:5] = fed
            wanted = free.step(held)["y"]
    np.testing.assert_allclose(together, wanted, rtol=0, atol=64 * np.finfo(np.float32).eps)


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    with open_step(tmp_path, HEARD) as session:
        broken: list[bool] = []

        def run(feeds: Arrays) -> Arrays:
            if broken:
                raise SessionError("broken")
            return session.run(feeds)

        slots = Slots(run, session.inputs, session.outputs, HEARD, 2)
        held = [slots.take(), slots.take()]
        slots.feed[:2] = 0.7
        slots.step(held)
        broken.append(True)
        with pytest.raises(SessionError, match="broken"):
            slots.step(held)
        broken.clear()
        slots.feed[:2] = 0.7
        again = slots.step(held)["y"]
        wanted = Slots(session.run, session.inputs, session.outputs, HEARD, 2)
        held = [wanted.take(), wanted.take()]
        for _ in range(2):
            wanted.feed[:2] = 0.7
            twice = wanted.step(held)["y"]
    np.testing.assert_array_equal(again, twice)


def test_what_a_step_chooses_from_has_a_fixed_size(tmp_path: Path) -> None:
    inputs, outputs = specs(WRITTEN)
    loose = (outputs[0].__class__("y", "float32", ("rows", "symbols")), outputs[1])
    with pytest.raises(SessionError, match="fixed number of choices"):
        Slots(plain, inputs, loose, WRITTEN, 2)
