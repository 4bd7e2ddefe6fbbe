"""What `--prune-tokens` asks for, and the strongest pruning that loses little, where it asks for auto."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from edgekit.errors import QualityError, UnknownNameError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, judge, judged_samples, run_model
from edgekit.passes.tokens.length import FixLength, open_lengths
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.progress import Progress
from edgekit.registry import TOKEN_METHODS

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


def fix_length(model: Model, asked: int | None, progress: Progress) -> tuple[Model, Outputs | None]:
    """`model` at one length where its inputs have any, and its answers before, from which the quality is counted:
    None where they stay. `asked`: tokens; None: the longest sample's.

    Raises UsageError where a length is asked for that is not open, or the answers would change their shape.
    """
    if asked is None and (model.onnx_path is not None or not open_lengths(model)):
        return model, None
    fixed = FixLength(asked)(model, progress)
    samples, shorter = judged_samples(model), judged_samples(fixed)
    if all(torch.equal(a[name], b[name]) for a, b in zip(samples, shorter, strict=True) for name in a):
        return fixed, None
    before, after = run_model(model.evolve_quietly(dynamic={}), samples), fixed.forward(shorter[0])
    if any(value.shape[1:] != before[name].shape[1:] for name, value in after.items()):
        raise UsageError(
            f"the answers of {model.name} have the length of its inputs, and at another length they cannot be judged",
            hint="give the model one length, and samples padded to it",
        )
    return fixed, before


def parse(asked: str) -> PruneTokens:
    """Raises UnknownNameError or UsageError."""
    method, _, text = asked.partition("@")
    if method not in TOKEN_METHODS:
        raise UnknownNameError("token method", method, ["auto", "none", *TOKEN_METHODS])
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
