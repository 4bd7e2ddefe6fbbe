"""A sample through a Predictor, with the span `request` around all of it: the root of the trace on a device."""

from __future__ import annotations

import time

from edgekit.runtimes.predict import Prediction, Predictor, Source
from edgekit.runtimes.tracing.recorder import Recorder
from edgekit.runtimes.tracing.span import NS_PER_MS


def predict_traced(
    recorder: Recorder, model: str, predictor: Predictor, source: Source, *, count: int = 5
) -> tuple[Prediction, str]:
    """What `predictor.predict` gives, and the trace id. Raises like it; the span then ends with the error.

    Children: preprocess, postprocess, and between them `ask` where the session is a coordinator with the same recorder,
    else `compute`.
    """
    with recorder.request("request", model) as span:
        at = time.time_ns()
        prediction = predictor.predict(source, count=count)
        traces_itself = predictor.session.format == "split"
        # The three stages follow each other without a gap.
        for name, spent_ms in prediction.latency_ms.items():
            end = at + round(spent_ms * NS_PER_MS)
            if name != "inference":
                span.add(name, at, end)
            elif not traces_itself:
                span.add("compute", at, end, format=predictor.session.format)
            at = end
    return prediction, span.trace_id
