"""Before anything is built: the model captured and folded, each step compared with the one before."""

from __future__ import annotations

import copy

from edgekit.model import Model
from edgekit.parity import Step, compare, judged_samples, run_model
from edgekit.passes.base import Pipeline
from edgekit.passes.capture import Capture
from edgekit.passes.fold import FoldBatchNorm
from edgekit.passes.layer_scale import FoldLayerScale
from edgekit.progress import Progress

COMPARED = 8


def prepare(original: Model, progress: Progress) -> tuple[Model, tuple[Step, ...]]:
    """Captured and folded, each step compared with the eager module on real inputs."""
    if original.onnx_path is not None:
        return original, ()
    samples = judged_samples(original)[:COMPARED]
    progress("capture", 0, 0)
    captured = Capture()(original, progress)
    module = copy.deepcopy(original.module).eval()
    eager = run_model(original.evolve_quietly(output_names=captured.output_names, module=module), samples)
    exported = run_model(captured, samples)
    folded = Pipeline([FoldBatchNorm(), FoldLayerScale()])(captured, progress)
    steps = (compare("captured", eager, exported), compare("folded", exported, run_model(folded, samples)))
    return folded, steps
