"""What `--prune-tokens` asks for, and the strongest pruning that loses little, where it asks for auto."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import QualityError, UnknownNameError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, judge, run_model
from edgekit.passes.tokens.prune import METHODS, PruneTokens
from edgekit.progress import Progress

USUAL_SHARE = 0.7
# Of what may be lost in all, pruning may take this much: quantization follows.
SHARE_OF_DROP = 0.5
# The methods that auto compares, and the shares of the encoder's FLOPs between which it searches.
COMPARED = ("merge", "class")
MOST, LEAST, HALVINGS = 0.95, 0.35, 4
JUDGED = 128


@dataclass(frozen=True)
class Tried:
    method: str
    flops: float
    drop: float


def prune_tokens(model: Model, asked: str, max_drop: float, progress: Progress) -> Model:
    """`asked`: none, auto, or a method with a share of the FLOPs, as merge or merge@0.6. `model` is not captured yet.

    Raises UsageError, UnknownNameError or SourceError for what cannot be pruned, QualityError where auto finds nothing
    that loses less than half of `max_drop` points.
    """
    if asked == "none":
        return model
    chosen = None if asked == "auto" else parse(asked)
    if model.onnx_path is not None:
        raise UsageError(
            f"{model.name} is a trained .onnx file, and tokens are pruned in a torch module",
            hint="give the module that the file was exported from",
        )
    if chosen is not None:
        return chosen(model, progress)
    return _strongest(model, SHARE_OF_DROP * max_drop, progress)


def parse(asked: str) -> PruneTokens:
    """Raises UnknownNameError or UsageError."""
    method, _, text = asked.partition("@")
    if method not in METHODS:
        raise UnknownNameError("token method", method, ["auto", "none", *METHODS])
    if "@" not in asked:
        return PruneTokens(method, USUAL_SHARE)
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text) is None or not 0 < float(text) <= 1:
        raise UsageError(
            f"the share of the FLOPs that is left is {text or 'nothing'!r}, allowed above 0 to 1",
            hint=f"--prune-tokens {method}@{USUAL_SHARE}",
        )
    return PruneTokens(method, float(text))


def _strongest(model: Model, allowed: float, progress: Progress) -> Model:
    """By halving for each method, on calibration samples alone: what is held out judges the artifact later."""
    samples = (model.calibration or model.held_out or (model.example_inputs,))[:JUDGED]
    judged = model.evolve_quietly(labels=())
    reference = run_model(judged, samples)
    good: list[Tried] = []
    for index, method in enumerate(COMPARED):
        low, high = LEAST, MOST
        for step in range(HALVINGS):
            progress("prune tokens", index * HALVINGS + step, len(COMPARED) * HALVINGS)
            share = (low + high) / 2
            tried = _try(judged, method, share, samples, reference)
            if tried is not None and tried.drop <= allowed:
                good.append(tried)
                high = share
            else:
                low = share
    if not good:
        raise QualityError(
            f"no token pruning of {model.name} stays within {allowed:.2f} points on the calibration samples",
            hint="raise --max-drop, or --prune-tokens merge@0.9",
        )
    best = min(good, key=lambda tried: (tried.flops, tried.drop))
    return PruneTokens(best.method, best.flops)(model, progress)


def _try(model: Model, method: str, share: float, samples: tuple[Sample, ...], reference: Outputs) -> Tried | None:
    try:
        pruned = PruneTokens(method, share)(model)
    except UsageError:
        return None  # the method cannot go as far
    quality = judge(model, reference, run_model(pruned, samples))
    changed = 0.0 if quality.top1_agreement is None else 100 * (1 - quality.top1_agreement)
    # On what a classifier was trained on it is sure of itself, and little seems lost: half of the changes count.
    return Tried(method, share, max(quality.drop, 0.5 * changed))
