from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.runtimes.coordinator.confidence import calibrate_exit, confidence, fit_temperature


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares


def samples(count: int = 4000, sharpness: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `sharpness` times those by which the labels were drawn."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, 5)) * 2
    labels = (softmax(logits).cumsum(-1) > rng.random((count, 1))).argmax(-1)
    return (logits * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 4, 5), (1, 1)])
def test_confidence_is_the_largest_softmax(shape: tuple[int, ...]) -> None:
    logits = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 5
    np.testing.assert_allclose(confidence(logits, 2.0), softmax(logits.astype(np.float64) / 2).max(-1), rtol=1e-12)


def test_confidence_of_huge_logits_does_not_overflow() -> None:
    assert confidence(np.array([1e30, -1e30, 0], np.float32)) == 1.0


def test_confidence_of_nan_is_an_error() -> None:
    with pytest.raises(DataError, match="NaN"):
        confidence(np.array([np.nan, 1.0]))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_temperature_undoes_how_sharp_the_logits_were_made(sharpness: float) -> None:
    logits, labels = samples(sharpness=sharpness)
    # 4,000 labels leave about 3 % of doubt
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.08)


def test_the_temperature_is_no_worse_than_any_on_a_grid() -> None:
    logits, labels = samples(500, 1.7, seed=3)

    def loss(temperature: float) -> float:
        chosen = softmax(logits.astype(np.float64) / temperature)[np.arange(len(labels)), labels]
        return float(-np.log(chosen).mean())

    fitted = loss(fit_temperature(logits, labels))
    assert all(fitted <= loss(temperature) + 1e-9 for temperature in np.geomspace(0.06, 19, 200))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exit logits, better logits from above, labels."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 2000)
    exact = np.eye(4)[labels] * 4
    rough, fine = (exact + rng.standard_normal((2000, 4)) * spread for spread in (3.0, 1.2))
    return rough.astype(np.float32), fine.astype(np.float32), labels


def test_the_curve_counts_what_really_comes_of_each_threshold(pair) -> None:
    rough, fine, labels = pair
    found = calibrate_exit(rough, fine, labels)
    sure = confidence(rough, found.temperature)
    for point in found.curve:
        answer = np.where(sure >= point.threshold, rough.argmax(-1), fine.argmax(-1))
        assert point.answered == np.mean(sure >= point.threshold)
        assert point.drop == pytest.approx(100 * (np.mean(fine.argmax(-1) == labels) - np.mean(answer == labels)))


def test_the_curve_goes_from_everything_to_nothing(pair) -> None:
    found = calibrate_exit(*pair)
    assert (found.curve[0].answered, found.curve[-1].answered) == (1.0, 0.0)
    assert found.curve[-1].drop == 0.0
    assert all(a.answered >= b.answered for a, b in zip(found.curve, found.curve[1:], strict=False))


@pytest.mark.parametrize("max_drop", [0.0, 0.5, 3.0, 50.0])
def test_the_threshold_is_the_lowest_within_the_drop(pair, max_drop: float) -> None:
    found = calibrate_exit(*pair, max_drop=max_drop)
    chosen = next(point for point in found.curve if point.threshold == found.threshold)
    assert chosen.drop <= max_drop
    assert all(point.drop > max_drop for point in found.curve if point.threshold < found.threshold)


def test_no_threshold_beats_the_oracle(pair) -> None:
    rough, fine, labels = pair
    found = calibrate_exit(rough, fine, labels)
    right, upper = rough.argmax(-1) == labels, fine.argmax(-1) == labels
    assert found.oracle_accuracy == np.mean(right | upper)
    assert found.oracle_answered == pytest.approx(1 - np.mean(upper & ~right))
    assert all(found.upper_accuracy - point.drop / 100 <= found.oracle_accuracy + 1e-12 for point in found.curve)


def test_without_labels_the_upper_model_is_right(pair) -> None:
    rough, fine, _ = pair
    found = calibrate_exit(rough, fine)
    assert found.upper_accuracy == found.oracle_accuracy == 1.0
    assert found.exit_accuracy == np.mean(rough.argmax(-1) == fine.argmax(-1))


def test_elasticity_relates_the_gain_to_the_cost(pair) -> None:
    found = calibrate_exit(*pair, exit_cost=2.0, upper_cost=6.0)
    assert found.elasticity[0].ratio is None and found.elasticity[0].cost == 0.0
    last = found.elasticity[-1]
    gain = (found.upper_accuracy - found.exit_accuracy) / found.exit_accuracy
    assert (last.cost, last.gain, last.ratio) == pytest.approx((3.0, gain, gain / 3.0))


def test_it_becomes_a_manifests_exit(pair) -> None:
    found = calibrate_exit(*pair)
    exit = found.to_exit("early")
    assert (exit.part, exit.threshold, exit.temperature) == ("early", found.threshold, found.temperature)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 5), (3,)), ((3, 4), (3, 4), (2,)), ((0, 4), (0, 4), (0,)), ((4,), (4,), (4,))]
)
def test_arrays_that_do_not_fit_are_data_errors(shapes) -> None:
    logits, upper, labels = (np.zeros(shape) for shape in shapes)
    with pytest.raises(DataError, match="allowed"):
        calibrate_exit(logits, upper, labels.astype(int))
