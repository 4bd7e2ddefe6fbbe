from __future__ import annotations

import pytest

from edgekit.cli.wording import quality_text
from edgekit.report.model import Quality


@pytest.mark.parametrize("held_out", [True, False])
def test_quality_says_where_no_sample_was_held_out(held_out: bool) -> None:
    text = quality_text(
        Quality(measure="sqnr_db", value=40.0, samples=1, reference="float model", sqnr_db=40.0, held_out=held_out)
    )
    assert text.endswith("; none of them held out from calibration") is not held_out
