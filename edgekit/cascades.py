"""Cascades: an early exit beside the head, packed where enough samples can leave within the limit."""

from __future__ import annotations

import numpy as np
import torch

from edgekit.bundle.manifest import Variant
from edgekit.errors import DataError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.exits import AttachExit
from edgekit.registry import EXPORTERS
from edgekit.runtimes.coordinator.confidence import calibrate_exit
from edgekit.selection import Candidate, Packed
from edgekit.split_outcome import SplitOutcome
from edgekit.tier_bench import TierBench

WORTHWHILE_SHARE = 0.05  # of the samples; fewer early answers do not pay for the exit that every sample runs


def cascade(tiers: TierBench, head: Model, slug: str, parts: tuple[str, str], codec: str) -> SplitOutcome:
    """The exit as a part of its own and a variant over `parts`; empty, with a note, where it would not pay."""
    whole = tiers.whole.model
    post = whole.postprocess
    if post is None or post.kind != "classification":
        return SplitOutcome()
    teacher = run_model(whole, whole.calibration)[post.output]
    try:
        early = AttachExit()(head, torch.from_numpy(teacher), tiers.whole.progress)
    except DataError as error:
        return SplitOutcome(notes=(f"cut {slug}: no early exit, {error.message}",))
    logits = run_model(early, early.held_out)["logits"]
    labels = np.asarray(whole.labels) if len(whole.labels) == len(logits) else None
    calibration = calibrate_exit(logits, tiers.whole.yardstick[post.output], labels, max_drop=tiers.max_drop)
    chosen = next(point for point in calibration.curve if point.threshold == calibration.threshold)
    if chosen.answered < WORTHWHILE_SHARE:
        why = f"{100 * chosen.answered:.0f} % of the samples could leave within --max-drop {tiers.max_drop:g}"
        return SplitOutcome(notes=(f"cut {slug}: no early exit, {why}",))
    bench = tiers.stage_bench(early, tiers.whole.device, f"exit-{slug}")
    format = tiers.winner.candidate.format
    built = bench.build(Candidate(format, "fp32", asked=True), EXPORTERS.load(format)())
    if built.error is not None:
        raise built.error
    part = f"exit-{slug}"
    variant = Variant(name=f"cascade-{slug}", parts=parts, codecs=(codec,), exit=calibration.to_exit(part))
    return SplitOutcome(packed=(Packed(part, built),), variants=(variant,))
