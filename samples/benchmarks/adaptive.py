"""Adaptive depth and width on Fashion-MNIST: accuracy against mean cost, the oracle's bound, and experts by task.

    python samples/benchmarks/adaptive.py [--test 10000]

fashion-vit-adaptive in float ONNX, one thread: its widths, and its exits at thresholds chosen on the 5,000 validation
images that no training saw, judged on the test images. A cost is the mean of what ran for an image, each part's median
measured alone, all in turns, over that of the whole model. The oracle takes the cheapest way that is right for each
image (Duo-LLM, arXiv:2410.10846): no router does better. fashion-vit-tasks: what one task weighs alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, medians_ms, rounded, save

from edgekit.devices.device import load_device
from edgekit.evaluation.intervals import share, share_difference
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.adaptive.exits import AttachExits
from edgekit.passes.adaptive.tasks import KeepTask
from edgekit.passes.adaptive.widths import SlimEncoder
from edgekit.pipeline import prepare
from edgekit.planning.exits import leaving, oracle, reach, schedule_for
from edgekit.progress import silent
from edgekit.runtimes.coordinator.confidence import calibration_error, confidence
from edgekit.runtimes.coordinator.ladder_calibration import LadderCalibration, calibrate_ladder
from edgekit.runtimes.session import Session, SessionOptions
from edgekit.zoo.fashion import normalize
from edgekit.zoo.fashion_adaptive import EXITS, WIDTHS, fashion_vit_adaptive
from edgekit.zoo.fashion_tasks import GROUP_OF, TASKS, fashion_tasks, turned
from samples.data import FashionMnist, fashion_mnist
from samples.training.trainer import VALIDATION_IMAGES

DROPS = (0.25, 0.5, 1.0, 2.0)
BATCH = 100
BUDGET = 0.6  # of the ladder's whole cost, at worst


@dataclass
class Shop:
    """Builds artifacts in `folder`, opened until `stack` ends; `sizes` in bytes."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.device, self.sizes = load_device("x86-server"), {}

    def open(self, name: str, model: Model) -> Session:
        place = self.folder / name
        place.mkdir()
        artifact = OnnxExporter().export(model, place, self.device)
        self.sizes[name] = artifact.size_bytes
        return self.stack.enter_context(artifact.open(model, SessionOptions(threads=1)))


def run(session: Session, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return session.run({spec.name: values[spec.name] for spec in session.inputs})


def batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def logits_of(session: Session, images: np.ndarray) -> np.ndarray:
    return np.concatenate([next(iter(session.run({"image": part}).values())) for part in batches(images)])


def ladder_logits(stages: list[Session], heads: list[Session], images: np.ndarray) -> list[np.ndarray]:
    """At each exit, and at the end."""
    found: list[list[np.ndarray]] = [[] for _ in stages]
    for part in batches(images):
        values = {"image": part}
        for index, stage in enumerate(stages):
            values |= run(stage, values)
            answer = run(heads[index], values) if index < len(heads) else values
            found[index].append(answer["logits"])
    return [np.concatenate(rows) for rows in found]


def row(hits: np.ndarray, whole: np.ndarray, cost: float, **more: Any) -> dict[str, Any]:
    """`hits`, `whole` bool [N]: right answers of a way and of the whole model; `cost` of the whole model's."""
    own, lost = share(hits), share_difference(whole, hits)
    return {
        "accuracy": own.value,
        "low": own.low,
        "high": own.high,
        "lost_points": 100 * lost.value,
        "lost_low": 100 * lost.low,
        "lost_high": 100 * lost.high,
        "cost": cost,
        **more,
    }


def exit_row(
    found: LadderCalibration, logits: list[np.ndarray], truth: np.ndarray, whole: np.ndarray, costs: list[float]
) -> dict[str, Any]:
    sure, right = judged(found, logits, truth)
    left_at = leaving(sure, found.thresholds)
    reached = reach(left_at, right, costs)
    hits = right[left_at, np.arange(len(truth))]
    return row(hits, whole, reached.cost, left=reached.left, worst=found.schedule.worst(costs))


def judged(found: LadderCalibration, logits: list[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidences [E, N] and right answers [E + 1, N]."""
    pairs = zip(logits[:-1], found.temperatures, strict=True)
    return np.stack([confidence(one, at) for one, at in pairs]), np.stack([one.argmax(1) == truth for one in logits])


def scheduled_row(
    found: LadderCalibration, logits: list[np.ndarray], truth: np.ndarray, whole: np.ndarray, costs: list[float]
) -> dict[str, Any]:
    """Batches of 64 that never cost more than BUDGET of the ladder: the least sure of each go on."""
    sure, right = judged(found, logits, truth)
    schedule = schedule_for(1 - np.cumsum(found.reached.left[:-1]), costs, BUDGET * costs[-1])
    left_at = np.empty(len(truth), int)
    dearest = 0.0
    for start in range(0, len(truth), schedule.window):
        place = np.arange(start, min(start + schedule.window, len(truth)))
        count = len(place)
        for exit, threshold in enumerate(found.thresholds):
            left_at[place] = exit
            wants = place[sure[exit, place] < threshold]
            place = wants[schedule.going_on(sure[exit, wants], exit, count)]
        left_at[place] = len(found.thresholds)
        spent = np.take(costs, left_at[start : start + count])
        dearest = max(dearest, float(spent.mean())) if count == schedule.window else dearest
    reached = reach(left_at, right, costs)
    hits = right[left_at, np.arange(len(truth))]
    return row(hits, whole, reached.cost, left=reached.left, worst=schedule.worst(costs), dearest_batch=dearest)


def cascade_row(
    small: np.ndarray,
    large: np.ndarray,
    validation: list[np.ndarray],
    known: np.ndarray,
    truth: np.ndarray,
    costs: tuple[float, float],
) -> dict[str, Any]:
    """The narrowest first, the whole one where that is unsure: a router that pays for what it tried."""
    steps = [costs[0], costs[0] + costs[1]]
    found = calibrate_ladder([validation[0]], validation[1], known, steps, 0.5)
    return exit_row(found, [small, large], truth, large.argmax(1) == truth, steps)


def measure(shop: Shop, data: FashionMnist, test: int) -> dict[str, Any]:
    split = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:VALIDATION_IMAGES].numpy()
    held, known = normalize(torch.from_numpy(data.train[split])).numpy(), data.train_labels[split]
    images, truth = normalize(torch.from_numpy(data.test[:test])).numpy(), data.test_labels[:test]
    original = fashion_vit_adaptive()
    model, _ = prepare(original, silent)
    ladder = AttachExits(EXITS)(original, model, torch.from_numpy(run_model(model, model.calibration)["logits"]))
    widths = {f"width {width:g}": model if width == 1 else _slim(original, width) for width in WIDTHS}
    sessions = {name: shop.open(name, made) for name, made in widths.items()}
    stages = [shop.open(f"stage {index}", stage) for index, stage in enumerate(ladder.stages)]
    heads = [shop.open(f"exit {depth}", head) for depth, head in zip(EXITS, ladder.heads, strict=True)]
    times = _times(sessions, stages, heads, images[:1])
    unit = times["width 1"]
    answers = {name: logits_of(session, images) for name, session in sessions.items()}
    whole = answers["width 1"].argmax(1) == truth
    rows = {
        name: row(logits.argmax(1) == truth, whole, times[name] / unit, size_bytes=shop.sizes[name])
        for name, logits in answers.items()
    }
    names = sorted(sessions, key=lambda name: times[name])
    bound = oracle(np.stack([answers[name].argmax(1) == truth for name in names]), [times[n] / unit for n in names])
    rows["oracle over widths"] = {"accuracy": bound.accuracy, "cost": bound.cost, "left": bound.left}
    small, large = names[0], "width 1"
    validation = [logits_of(sessions[name], held) for name in (small, large)]
    rows["router over widths"] = cascade_row(
        answers[small], answers[large], validation, known, truth, (times[small] / unit, 1.0)
    )
    costs = [cost / unit for cost in np.cumsum(_steps(times))]
    seen, asked = (ladder_logits(stages, heads, given) for given in (held, images))
    for drop in DROPS:
        found = calibrate_ladder(seen[:-1], seen[-1], known, costs, drop)
        rows[f"exits, {drop:g} allowed"] = exit_row(found, asked, truth, whole, costs)
        if drop == 1.0:
            rows["exits, scheduled"] = scheduled_row(found, asked, truth, whole, costs)
            calibration = _calibration(found, asked, truth)
    bound = oracle(np.stack([logits.argmax(1) == truth for logits in asked]), costs)
    rows["oracle over exits"] = {"accuracy": bound.accuracy, "cost": bound.cost, "left": bound.left}
    return {"images": len(truth), "whole_ms": unit, "ladder_costs": costs, "calibration": calibration, "rows": rows}


def _slim(original: Model, width: float) -> Model:
    return prepare(SlimEncoder(width)(original), silent)[0]


def _times(
    sessions: Mapping[str, Session], stages: list[Session], heads: list[Session], image: np.ndarray
) -> dict[str, float]:
    calls: dict[str, Any] = {name: (lambda s=s: s.run({"image": image})) for name, s in sessions.items()}
    values = {"image": image}
    for index, stage in enumerate(stages):
        feeds = {spec.name: values[spec.name] for spec in stage.inputs}
        calls[f"stage {index}"] = lambda s=stage, feeds=feeds: s.run(feeds)
        values |= run(stage, values)
        if index < len(heads):
            given = {spec.name: values[spec.name] for spec in heads[index].inputs}
            calls[f"head {index}"] = lambda s=heads[index], given=given: s.run(given)
    return medians_ms(calls, rounds=5, lap_s=0.3)


def _steps(times: Mapping[str, float]) -> list[float]:
    count = sum(name.startswith("stage") for name in times)
    return [times[f"stage {index}"] + times.get(f"head {index}", 0.0) for index in range(count)]


def _calibration(found: LadderCalibration, logits: list[np.ndarray], truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Expected calibration errors on the test images, before and after scaling by the temperature."""
    return {
        f"exit {depth}": {
            "temperature": at,
            "error": calibration_error(confidence(one, at), one.argmax(1) == truth),
            "error_before": calibration_error(confidence(one), one.argmax(1) == truth),
        }
        for depth, one, at in zip(EXITS, logits, found.temperatures, strict=False)
    }


def tasks(shop: Shop, data: FashionMnist, test: int) -> dict[str, Any]:
    """Each task alone against all three: bytes, accuracy, and how far the answers differ."""
    several = fashion_tasks()
    whole, _ = prepare(several, silent)
    every = shop.open("tasks", whole)
    upright = normalize(torch.from_numpy(data.test[:test]))
    quarters = torch.randint(0, 4, (len(upright),), generator=torch.Generator().manual_seed(0))
    truths = {
        "item": data.test_labels[:test],
        "group": np.asarray(GROUP_OF)[data.test_labels[:test]],
        "turn": quarters.numpy(),
    }
    # Its one file repeats shared weights for each task: the weights themselves are what is fair to compare with.
    rows: dict[str, Any] = {"all": {"size_bytes": several.size_bytes, "file_bytes": shop.sizes["tasks"]}}
    for task in TASKS:
        images = (turned(upright, quarters) if task == "turn" else upright).numpy()
        kept, _ = prepare(KeepTask(task)(several), silent)
        logits = logits_of(shop.open(task, kept), images)
        before = np.concatenate([every.run({"image": part})[task] for part in batches(images)])
        found = share(logits.argmax(1) == truths[task])
        rows[task] = {
            "size_bytes": shop.sizes[task],
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
            "differs_by": float(np.abs(logits - before).max()),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        shop = Shop(Path(place), stack)
        result = rounded({**measure(shop, data, asked.test), "tasks": tasks(shop, data, asked.test)}, 4)
    for name, found in result["rows"].items():
        lost = f"{found['lost_points']:+.2f} lost" if "lost_points" in found else ""
        print(f"{name:22} {100 * found['accuracy']:6.2f} % at {found['cost']:.3f} of the whole {lost}")
    print(result["calibration"], result["tasks"], sep="\n")
    print("written:", save("adaptive", {**environment(1), **result}))


if __name__ == "__main__":
    main()
