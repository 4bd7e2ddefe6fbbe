from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import DataError
from edgekit.evaluation.disjoint import check_disjoint, digest_sample


def rows(start: int, stop: int) -> list[dict[str, np.ndarray]]:
    return [{"image": np.full((2, 3), value, np.float32)} for value in range(start, stop)]


def test_sets_without_a_common_sample_pass():
    check_disjoint(rows(0, 5), rows(5, 9))
    check_disjoint([], rows(0, 3))
    check_disjoint(["one sentence"], ["another"])


def test_a_sample_in_both_is_told_with_its_places():
    with pytest.raises(DataError, match=r"2 evaluation samples .* evaluation 1 is calibration 3") as caught:
        check_disjoint(rows(0, 5), [*rows(7, 8), *rows(3, 5)])
    assert "fitted" in caught.value.hint


def test_the_content_counts_and_not_the_container():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_sample(torch.from_numpy(array)) == digest_sample(array)
    assert digest_sample(np.asfortranarray(array)) == digest_sample(array)
    assert digest_sample({"a": array, "b": array + 1}) == digest_sample({"b": array + 1, "a": array})


def test_another_shape_type_or_name_is_another_sample():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = [array.reshape(3, 2), array.astype(np.float64), array + 1, {"a": array}, {"b": array}]
    assert len({digest_sample(sample) for sample in [array, *others]}) == 6


def test_what_has_no_content_is_refused():
    with pytest.raises(DataError, match="object"):
        check_disjoint([object()], [])
