"""The joint search on fashion-vit against the best recipe that turns one knob, under the same limits on five devices.

    python samples/benchmarks/search.py [--budget 150s] [--devices NAME ...]

One-knob recipes: each precision that the device runs; tokens merged, or kept by the class token's attention, down to
nine to five tenths of the FLOPs; heads and hidden units of every block; whole blocks. A limit is the least that a
one-knob recipe comes to within some points lost, so that one always meets it. Both sides are built, timed and judged by
the same code, choose on the first 3,000 of Fashion-MNIST's test images and are told on the other 7,000; calibration is
on training images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, rounded, save

from edgekit.devices.device import Device, load_device
from edgekit.devices.energy import energy
from edgekit.devices.latency import predict
from edgekit.errors import EdgekitError, PlanError
from edgekit.evaluation.intervals import share_difference
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.parity import run_model, run_session
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.transformer.families import find_encoder
from edgekit.passes.weights.budget import evenly
from edgekit.passes.weights.magnitude import magnitudes
from edgekit.passes.weights.prune import PruneWeights
from edgekit.passes.weights.similarity import similarities, without_similar
from edgekit.passes.weights.stacks import blocks_of, plain
from edgekit.progress import silent
from edgekit.quantizers.quantize import FLOAT, QuantizerOptions
from edgekit.recipe import Recipe
from edgekit.runtimes.session import SessionOptions
from edgekit.search.limits import SearchLimits
from edgekit.search.run import search
from edgekit.search.space import Configuration, Family
from edgekit.search.verify import Made, Verified, Verifier
from edgekit.search.workshop import Workshop
from edgekit.zoo.fashion import fashion_vit, normalize
from samples.data import fashion_mnist

CALIBRATION, CHOICE = 512, 3000
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
FORMAT = "onnx"


@dataclass(frozen=True)
class Pair:
    """`limit`: a name that --limit knows; its value is the least that a one-knob recipe comes to on `device` where it
    loses `lost` points at most."""

    device: str
    limit: str
    lost: float

    def value(self, rows: Mapping[str, Made]) -> str:
        """As --limit takes it, with 1 % of room."""
        field, unit = {"latency": ("latency_ms", "ms"), "energy": ("energy_mj", "mJ"), "size": ("size_bytes", "B")}[
            self.limit
        ]
        reached = min(made.verified.figures()[field] or 0 for made in rows.values() if made.verified.drop <= self.lost)
        return f"{self.limit}={1.01 * reached:.6f}{unit}"


PAIRS = (
    Pair("raspberry-pi-5", "latency", 1.0),
    Pair("raspberry-pi-4", "latency", 2.0),
    Pair("pixel-8", "energy", 1.0),
    Pair("jetson-orin-nano-super", "latency", 1.5),
    Pair("x86-server", "size", 1.0),
)


def model_of(images: np.ndarray, labels: np.ndarray, train: np.ndarray) -> Model:
    def samples(pixels: np.ndarray) -> tuple[dict[str, torch.Tensor], ...]:
        return tuple({"image": image[None]} for image in normalize(torch.from_numpy(pixels.copy())))

    return fashion_vit().evolve_quietly(
        calibration=samples(train), held_out=samples(images), labels=tuple(int(label) for label in labels)
    )


def one_knob(model: Model, device: Device) -> Iterator[tuple[str, Configuration]]:
    """(what a user would ask for, the configuration that it is)"""
    yield "none", Configuration(Family(FORMAT, FLOAT))
    carried = OnnxExporter().precisions
    for precision in device.precisions(FORMAT):
        if precision != FLOAT and precision in carried:
            yield f"--quantize {precision}", Configuration(Family(FORMAT, precision))
    for method in ("merge", "class"):
        for share in SHARES:
            run = find_encoder(PruneTokens(method, share)(model).module).run
            keep = tuple(run.keep)  # type: ignore[union-attr, arg-type]
            yield f"--prune-tokens {method}@{share:g}", Configuration(Family(FORMAT, FLOAT, method), keep)
    teacher = plain(model)
    blocks = blocks_of(teacher)
    costs = PruneWeights().costs(teacher)
    cosines = similarities(teacher, model.calibration[:64])
    for share in SHARES:
        kept = evenly(magnitudes(blocks), costs, share)
        shape = tuple((len(part.heads), len(part.units)) for part in kept)
        yield f"--prune-weights magnitude@{share:g}", Configuration(Family(FORMAT, FLOAT), shape=shape)
    for left in range(len(blocks) - 1, 2, -1):
        kept = without_similar(cosines, costs, left / len(blocks))
        shape = tuple((len(part.heads), len(part.units)) for part in kept)
        yield f"--prune-weights layers@{left / len(blocks):.2f}", Configuration(Family(FORMAT, FLOAT), shape=shape)


class Hand:
    """One-knob recipes; those in float are built once, as no device changes them."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._float: dict[Configuration, Made] = {}

    def all(self, device: Device) -> dict[str, Made]:
        place = self.folder / device.name
        exporters = {FORMAT: OnnxExporter()}
        options = QuantizerOptions(learned_rounding=False)
        verifier = Verifier(Workshop(self.model, device, exporters, options, place, 1, silent))
        found: dict[str, Made] = {}
        for name, configuration in one_knob(self.model, device):
            known = self._float.get(configuration)
            try:
                made = verifier.verify(configuration, {}) if known is None else on_device(known, self._twin, device)
            except EdgekitError as error:
                print(f"  {name}: {error}", flush=True)
                continue
            if made.verified.failed:
                print(f"  {name}: {made.verified.failed}", flush=True)
                continue
            if configuration.family.precision == FLOAT:
                self._float[configuration] = made
            found[name] = made
        return found

    @property
    def _twin(self) -> Made:
        return self._float[Configuration(Family(FORMAT, FLOAT))]


def on_device(made: Made, twin: Made, device: Device) -> Made:
    """The same artifact's figures elsewhere: what is predicted there, and the ratio that was measured here."""
    own, whole = (predict(one.built.segments, device, FORMAT).latency_ms for one in (made, twin))
    latency = float(np.sqrt(own * whole * made.verified.host_ms / twin.verified.host_ms))
    spent = energy(latency, device)
    verified = replace(
        made.verified, latency_ms=latency, predicted_ms=own, energy_mj=None if spent is None else spent.total_mj
    )
    return replace(made, verified=verified)


def rank(one: Verified, limits: SearchLimits) -> tuple[float, float]:
    by_quality = limits.latency_ms is not None or limits.energy_mj is not None
    return (one.drop, one.latency_ms) if by_quality else (one.latency_ms, one.drop)


def told(made: Made, other: Model) -> dict[str, Any]:
    """On images that neither side chose by: points lost, with their interval."""
    truth = np.asarray(other.labels)
    before = run_model(other.evolve_quietly(output_names=("logits",)), other.held_out)["logits"].argmax(-1) == truth
    assert made.built.artifact is not None
    with made.built.artifact.open(made.built.model, SessionOptions(threads=1)) as session:
        after = run_session(session, other.held_out)["logits"].argmax(-1) == truth
    found = share_difference(before, after)
    one = made.verified
    return {
        "recipe": str(one.configuration),
        "drop": 100 * found.value,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "chosen_drop": one.drop,
        "latency_ms": one.latency_ms,
        "size_bytes": one.size_bytes,
        "energy_mj": one.energy_mj,
        "expected": dict(one.expected),
    }


def compare(pair: Pair, hand: Hand, model: Model, other: Model, budget: str, folder: Path) -> dict[str, Any]:
    device = load_device(pair.device)
    rows = hand.all(device)
    limit = pair.value(rows)
    recipe = Recipe(
        source="fashion-vit", device=pair.device, limit=limit, budget=budget, max_drop=2.0, learned_rounding=False
    )
    limits = SearchLimits.parse(recipe.limit, recipe.max_drop)
    fitting = {name: made for name, made in rows.items() if not limits.broken(made.verified.figures())}
    result: dict[str, Any] = {"device": pair.device, "limit": limit, "lost": pair.lost}
    name = min(fitting, key=lambda key: rank(fitting[key].verified, limits))
    result["one_knob"] = {"asked": name, **told(fitting[name], other)}
    try:
        found = search(recipe, model, device, {FORMAT: OnnxExporter()}, folder, silent, fresh=True)
    except PlanError as error:
        return {**result, "search": None, "why": error.message}
    result["search"] = told(found.winner, other)
    late = [one for one in found.outcome.verified if one.expected and not one.failed]
    result["verified"] = len(found.outcome.verified)
    result["complete"] = found.outcome.complete
    result["drop_error"] = [abs(one.expected["drop"] - one.drop) for one in late]
    result["latency_error"] = [abs(one.expected["latency_ms"] / one.latency_ms - 1) for one in late]
    result["front"] = [
        {"recipe": str(one.configuration), "drop": one.drop, "latency_ms": one.latency_ms, "size_bytes": one.size_bytes}
        for one in found.outcome.front
    ]
    result["better"] = is_better(result, limits)
    return result


def is_better(result: dict[str, Any], limits: SearchLimits) -> bool:
    """By what the limits leave to choose, on the images that neither chose by."""
    ours, theirs = result["search"], result["one_knob"]
    key = "drop" if limits.latency_ms is not None or limits.energy_mj is not None else "latency_ms"
    return bool(ours[key] < theirs[key])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="150s")
    parser.add_argument("--devices", nargs="*", default=[pair.device for pair in PAIRS])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist()
    train = data.train[:CALIBRATION]
    model = model_of(data.test[:CHOICE], data.test_labels[:CHOICE], train)
    other = model_of(data.test[CHOICE:], data.test_labels[CHOICE:], train)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        hand = Hand(model, Path(place) / "hand")
        for pair in PAIRS:
            if pair.device not in asked.devices:
                continue
            row = compare(pair, hand, model, other, asked.budget, Path(place) / pair.device)
            rows.append(row)
            for side in ("one_knob", "search"):
                print(f"{pair.device:22} {row['limit']:24} {side:8}", rounded(row[side]), flush=True)
            print("  better:", row.get("better"), "built:", row.get("verified"), flush=True)
    drops = [error for row in rows for error in row.get("drop_error", [])]
    times = [error for row in rows for error in row.get("latency_error", [])]
    result = {
        **environment(1),
        "choice": CHOICE,
        "judged": len(data.test) - CHOICE,
        "budget": asked.budget,
        "rows": rows,
        "better": sum(bool(row.get("better")) for row in rows),
        "drop_error_median": float(np.median(drops)) if drops else None,
        "latency_error_median": float(np.median(times)) if times else None,
    }
    print("written:", save("search", rounded(result)))


if __name__ == "__main__":
    main()
