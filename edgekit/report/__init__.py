"""What was measured, as data and as a page."""

from edgekit.report.model import EvaluationReport

__all__ = ["EvaluationReport"]
