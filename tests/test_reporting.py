from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.manifest import Postprocess
from edgekit.report.metrics import sqnr_db
from edgekit.reporting import _quality

RNG = np.random.default_rng(0)
FLOATS = {"logits": RNG.standard_normal((8, 4)), "state": RNG.standard_normal((8, 16)), "ids": np.arange(8)}
ANSWERS = {
    "logits": FLOATS["logits"] + 0.001 * RNG.standard_normal((8, 4)),
    "state": FLOATS["state"] + 0.01 * RNG.standard_normal((8, 16)),
    "ids": FLOATS["ids"],
}


def evidence(postprocess: Postprocess | None = None, reference: dict[str, Any] = FLOATS) -> Any:
    original = SimpleNamespace(postprocess=postprocess, held_out=(1,), labels=())
    return SimpleNamespace(original=original, reference=reference, winner=SimpleNamespace(answers=ANSWERS))


def test_a_model_without_postprocessing_is_as_good_as_its_worst_output() -> None:
    found = _quality(evidence())
    assert found is not None
    assert found.measure == "sqnr_db"
    assert found.value == pytest.approx(sqnr_db(FLOATS["state"], ANSWERS["state"]))


def test_elsewhere_the_output_that_is_read_counts() -> None:
    found = _quality(evidence(Postprocess(kind="embedding", output="logits")))
    assert found is not None
    assert found.sqnr_db == pytest.approx(sqnr_db(FLOATS["logits"], ANSWERS["logits"]))


def test_whole_numbers_alone_have_no_quality() -> None:
    assert _quality(evidence(reference={"ids": FLOATS["ids"]})) is None
