"""What `--prune-tokens`, `--prune-heads` and `--length` ask for; for auto the strongest pruning that loses little."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from edgekit.errors import QualityError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import Outputs, judge, judged_samples, run_model
from edgekit.passes.base import Pass
from edgekit.passes.tokens.length import FixLength, open_lengths
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.prune_heads import PruneHeads
from edgekit.progress import Progress
from edgekit.registry import TOKEN_METHODS

USUAL_SHARE = 0.7
# Of what may be lost in all, pruning may take this much: quantization follows.
SHARE_OF_DROP, HEADS_SHARE_OF_DROP = 0.5, 0.25
# The methods that auto compares, and between which shares it searches: of the encoder's FLOPs, of the heads.
COMPARED = ("merge", "class")
MOST, LEAST, HALVINGS = 0.95, 0.35, 4
# It looks at FIRST samples, and at ever more while their mean is within DOUBT standard errors of what may be lost.
FIRST, JUDGED, DOUBT = 16, 128, 3.0


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
    rows, after = [model.forward(sample) for sample in samples], fixed.forward(shorter[0])
    if any(value.shape[1:] != row[name].shape[1:] for row in rows for name, value in after.items()):
        raise UsageError(
            f"the answers of {model.name} have the length of its inputs, and at another length they cannot be judged",
            hint="give the model one length, and samples padded to it",
        )
    return fixed, {name: np.concatenate([row[name].numpy() for row in rows]) for name in after}


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


def prune_heads(model: Model, asked: str, max_drop: float, progress: Progress) -> Model:
    """`asked`: none, auto, or the share of the heads that is left. `model` is not captured yet.

    Raises UsageError or SourceError for what cannot be pruned. auto leaves a model whole where heads cannot be spared.
    """
    if asked == "none":
        return model
    share = None if asked == "auto" else parse_heads(asked)
    if model.onnx_path is not None:
        raise UsageError(
            f"{model.name} is a trained .onnx file, and heads are pruned in a torch module",
            hint="give the module that the file was exported from",
        )
    if share is not None:
        return PruneHeads(share)(model, progress)
    trial = Trial(model, HEADS_SHARE_OF_DROP * max_drop)
    found = trial.halve(PruneHeads, MOST, "prune heads", progress)
    best = trial.confirmed(PruneHeads(share) for share in found)
    return model if best is None else best(model, progress)


def parse_heads(asked: str) -> float:
    """Raises UsageError."""
    if re.fullmatch(r"[0-9]*\.?[0-9]+", asked) is None or not 0 < float(asked) <= 1:
        raise UsageError(
            f"the share of the heads that is left is {asked or 'nothing'!r}, allowed auto, none, or above 0 to 1",
            hint="--prune-heads 0.75",
        )
    return float(asked)


def _strongest(model: Model, allowed: float, progress: Progress) -> Model:
    """By halving for each method; one that comes second has to beat the best so far at once."""
    trial = Trial(model, allowed)
    good: list[tuple[float, PruneTokens]] = []
    for method in COMPARED:
        make = partial(PruneTokens, method)
        best = min((share for share, _ in good), default=MOST)
        step = (MOST - LEAST) / 2**HALVINGS
        if good and (best - step <= LEAST or not trial.fits(make(best - step))):
            continue
        known = [best - step] if good else []
        shares = [*known, *trial.halve(make, known[0] if known else MOST, "prune tokens", progress)]
        good += [(share, make(share)) for share in shares]
    found = trial.confirmed(step for _, step in sorted(good, key=lambda entry: entry[0]))
    if found is None:
        raise QualityError(
            f"no token pruning of {model.name} stays within {allowed:.2f} points on the calibration samples",
            hint="raise --max-drop, or --prune-tokens merge@0.9",
        )
    return found(model, progress)


class Trial:
    """Passes tried on `model`'s calibration samples alone: what is held out judges the artifact later.

    A trial ends as soon as its samples leave no doubt; what is chosen in the end has been judged on all of them.
    """

    def __init__(self, model: Model, allowed: float) -> None:
        samples = (model.calibration or model.held_out or (model.example_inputs,))[:JUDGED]
        # Neighbours are often views of one picture: the first samples to be looked at come from everywhere.
        stride = max(1, len(samples) // FIRST)
        self.samples = tuple(sample for start in range(stride) for sample in samples[start::stride])
        self.model, self.allowed = model.evolve_quietly(labels=()), allowed
        self._reference: dict[int, Outputs] = {}

    def halve(self, make: Callable[[float], Pass], most: float, doing: str, progress: Progress) -> list[float]:
        """The shares that seem to fit, found by halving between LEAST and `most`."""
        low, high, good = LEAST, most, []
        for step in range(HALVINGS):
            if high - low < (MOST - LEAST) / 2**HALVINGS:
                break
            progress(doing, step, HALVINGS)
            share = (low + high) / 2
            if self.fits(make(share)):
                good.append(share)
                high = share
            else:
                low = share
        return good

    def confirmed(self, passes: Iterable[Pass]) -> Pass | None:
        """The first of `passes`, strongest first, that holds on every sample."""
        return next((step for step in passes if self.fits(step, surely=True)), None)

    def fits(self, step: Pass, *, surely: bool = False) -> bool:
        """Whether what is lost is within what is allowed: on all samples, or on as many as leave no doubt."""
        try:
            changed = step(self.model)
        except UsageError:
            return False  # the method cannot go as far
        lost: list[tuple[float, float]] = []
        for start, end in self._portions():
            lost += self._lost(changed, start, end)
            rows = np.asarray(lost)
            mean = rows.mean(0)
            error = rows.std(0) / np.sqrt(len(rows))
            if not surely and (mean + DOUBT * error).max() <= self.allowed and len(rows) > FIRST:
                return True
            if (mean - DOUBT * error).max() > self.allowed:
                return False
        return bool(mean.max() <= self.allowed)

    def _portions(self) -> Iterator[tuple[int, int]]:
        start, end = 0, FIRST
        while start < len(self.samples):
            yield start, min(end, len(self.samples))
            start, end = end, 2 * end

    def _lost(self, changed: Model, start: int, end: int) -> list[tuple[float, float]]:
        """By sample: points lost, and half of the classes changed in percent. On what a classifier was trained on it
        is sure of itself, and little seems lost: half of the changes count."""
        samples = self.samples[start:end]
        if start not in self._reference:
            self._reference[start] = run_model(self.model, samples)
        wanted, got = self._reference[start], run_model(changed, samples)
        found = []
        for row in range(min(map(len, wanted.values()))):
            quality = judge(
                self.model, *({name: v[row : row + 1] for name, v in rows.items()} for rows in (wanted, got))
            )
            classes = 0.0 if quality.top1_agreement is None else 50 * (1 - quality.top1_agreement)
            found.append((quality.drop, classes))
        return found
