"""What `--prune-weights` and `--recover` ask for, and the smallest encoder that loses little, where they say auto."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.data import Shape, load_data
from edgekit.distillation import Recovery
from edgekit.errors import DataError, QualityError, UnknownNameError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, judge, run_model
from edgekit.passes.weights.bottleneck import Masks
from edgekit.passes.weights.prune import METHODS, PruneWeights
from edgekit.progress import Progress

USUAL_SHARE = 0.5
USUAL_MINUTES = 5.0
# Of what may be lost in all, pruning may take this much: quantization follows.
SHARE_OF_DROP = 0.5
# Shares that auto tries, from the mildest; each with this part of the minutes, the last that is good with all of them.
TRIED = (0.85, 0.7, 0.6, 0.5, 0.4)
TRIAL = 0.1
# Of the minutes, for the masks.
MASKS = 0.2
JUDGED_EVERY = 4
# More samples than a recovery of hours would see.
TRAINED_SAMPLES = 50_000


def prune_weights(
    model: Model,
    asked: str,
    *,
    minutes: float,
    train: str | None,
    max_drop: float,
    progress: Progress,
    checkpoint: Path | None = None,
    seed: int = 0,
) -> Model:
    """`asked`: none, auto, or a method with the share of the FLOPs that is left, as vib or vib@0.5. `model` is not
    captured yet. `train`: inputs to recover from, what --calibration takes; the Model's own without.

    Raises UsageError, UnknownNameError, SourceError or DataError for what cannot be pruned, QualityError where auto
    finds nothing that loses less than half of `max_drop` points.
    """
    if asked == "none":
        return model
    method, share = ("vib", TRIED[-1]) if asked == "auto" else parse(asked)
    if model.onnx_path is not None:
        raise UsageError(
            f"{model.name} is a trained .onnx file, and weights are pruned in a torch module",
            hint="give the module that the file was exported from",
        )
    samples = training_samples(model, train) if train is not None else model.calibration
    if not samples and asked != "auto" and (minutes or method != "magnitude"):
        raise DataError(
            f"{model.name} brings no inputs to learn from, and one example is not enough",
            hint="--calibration PATH or --train DIR; --prune-weights magnitude with --recover 0 needs none",
        )
    step = PruneWeights(
        method,
        share,
        recovery=Recovery((1 - MASKS if method == "vib" else 1) * minutes, seed=seed) if minutes else None,
        masks=Masks(MASKS * minutes if minutes else 1.0, seed=seed),
        samples=samples,
        checkpoint=checkpoint,
    )
    if asked != "auto":
        return step(model, progress)
    return _smallest(model, step, SHARE_OF_DROP * max_drop, progress)


def parse(asked: str) -> tuple[str, float]:
    """Raises UnknownNameError or UsageError."""
    method, _, text = asked.partition("@")
    if method not in METHODS:
        raise UnknownNameError("weight method", method, ["auto", "none", *METHODS])
    if "@" not in asked:
        return method, USUAL_SHARE
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text) is None or not 0 < float(text) <= 1:
        raise UsageError(
            f"the share of the FLOPs that is left is {text or 'nothing'!r}, allowed above 0 to 1",
            hint=f"--prune-weights {method}@{USUAL_SHARE}",
        )
    return method, float(text)


def training_samples(model: Model, path: str) -> tuple[Sample, ...]:
    """Of a folder of images or arrays, or a text file with a sentence a line. Raises DataError."""
    labels = getattr(model.postprocess, "labels", ())
    shape = Shape(model.example_inputs, model.dynamic, model.preprocess, model.tokenizer, labels)
    data = load_data(path, shape, calibration_limit=TRAINED_SAMPLES, held_out_limit=TRAINED_SAMPLES)
    return (*data.calibration, *data.held_out)


def _smallest(model: Model, step: PruneWeights, allowed: float, progress: Progress) -> Model:
    """From the mildest share on, each recovered for a while and judged on samples that it was not trained on."""
    held = tuple(model.calibration[JUDGED_EVERY - 1 :: JUDGED_EVERY])
    if not held:
        raise DataError(
            f"{model.name} has no calibration samples to judge by", hint="--calibration, or --prune-weights vib@0.7"
        )
    judged = model.evolve_quietly(labels=())
    reference = run_model(judged, held)
    known = {id(sample) for sample in held}
    trained = tuple(sample for sample in step.samples if id(sample) not in known)
    learned = step.learn(model, trained, progress)
    good: list[float] = []
    nearest = ""
    for share in TRIED:
        trial = replace(step, share=share, samples=trained, learned=learned, recovery=_part(step.recovery, TRIAL))
        place = None if step.checkpoint is None else step.checkpoint / f"trial-{share}"
        lost = _lost(judged, reference, replace(trial, checkpoint=place)(model, progress), held)
        if lost > allowed:
            nearest = f"{share:g} of the FLOPs lost {lost:.2f}"
            break
        good.append(share)
    if not good:
        raise QualityError(
            f"no weight pruning of {model.name} stays within {allowed:.2f} points on calibration samples: {nearest}",
            hint="raise --max-drop or --recover, or give more to learn from: --train",
        )
    return replace(step, share=good[-1], samples=trained, learned=learned)(model, progress)


def _part(recovery: Recovery | None, part: float) -> Recovery | None:
    return None if recovery is None else replace(recovery, minutes=part * recovery.minutes)


def _lost(judged: Model, reference: Outputs, pruned: Model, samples: Sequence[Sample]) -> float:
    """As for tokens: a classifier's changes of mind count half, where nothing is known of which were right."""
    quality = judge(judged, reference, run_model(pruned, samples))
    changed = 0.0 if quality.top1_agreement is None else 100 * (1 - quality.top1_agreement)
    return max(quality.drop, 0.5 * changed)
