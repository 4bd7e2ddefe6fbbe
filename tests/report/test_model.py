from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from edgekit.errors import BundleError
from edgekit.report.model import EvaluationReport, Sample


def test_report_survives_strict_json_with_its_infinities(report):
    text = json.dumps(report.to_json(), allow_nan=False)
    again = EvaluationReport.from_json(json.loads(text))
    assert again == report
    assert again.parity[0].sqnr_db == math.inf


def test_least_report_names_only_bundle_and_device():
    least = EvaluationReport(bundle="a.edgekit", device="jetson-nano")
    assert EvaluationReport.from_json(least.to_json()) == least


def test_unknown_keys_and_other_schemas_are_bundle_errors(report):
    for change in ({"schema_version": 2}, {"speed": 1}, {"quality": {"measure": "luck"}}):
        with pytest.raises(BundleError, match="does not fit"):
            EvaluationReport.from_json({**report.to_json(), **change})


def test_thumbnails_hold_base64_only():
    with pytest.raises(ValidationError):
        Sample(name="x", thumbnail='"><script>alert(1)</script>')
