"""Bundles of trained nets whose server parts bring programs, and one cache of compiled packages for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.model import Model
from edgekit.pipeline import export_recipe
from edgekit.recipe import Recipe
from edgekit.runtimes.load import load
from edgekit.runtimes.torch_engine import supply
from edgekit.zoo.fashion import fashion_cnn, fashion_vit

Feeds = dict[str, np.ndarray]


def exported(model: Model, folder: Path, split: str) -> Bundle:
    few = replace(model, held_out=model.held_out[:16], labels=model.labels[:16])
    recipe = {
        "source": model.name, "device": "raspberry-pi-4", "cloud": "x86-server", "format": "onnx", "quantize": "none",
        "bottleneck": "transform", "max_drop": 10.0, "report": False, "engine": "torch", "split": split,
        "output": str(folder / f"{model.name}.edgekit"),
    }  # fmt: skip
    return export_recipe(Recipe.of(recipe), module=few).bundle


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The whole net and a tail, for the cloud."""
    return exported(fashion_cnn(), tmp_path_factory.mktemp("cnn"), "features.5")


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The whole net alone."""
    return exported(fashion_vit(), tmp_path_factory.mktemp("vit"), "none")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiling takes tens of seconds: what one test compiled another one opens."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Nine pictures that the nets were not trained on: float32 [9, 1, 28, 28]."""
    return np.concatenate([sample["image"].numpy() for sample in fashion_cnn().held_out[:9]])


@pytest.fixture(scope="session")
def tail(cnn: Bundle) -> Part:
    return next(part for part in cnn.manifest.parts if part.name.startswith("tail"))


@pytest.fixture(scope="session")
def features(cnn: Bundle, tail: Part, images: np.ndarray) -> Feeds:
    """What the head makes of the pictures."""
    head = tail.name.replace("tail", "head")
    with load(cnn, part=head, threads=1) as session:
        made = session.run({"image": images})
    return {tail.inputs[0].name: next(iter(made.values()))}


@pytest.fixture(scope="session")
def first_rows() -> Callable[[Feeds, int], Feeds]:
    return lambda feeds, rows: {name: value[:rows] for name, value in feeds.items()}


# Unit roundoff of each dtype: an operator rounds its result and its weight to nearest.
ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-9, "fp16": 2.0**-12, "int8": 2.0**-24, "w4a16": 2.0**-9}
# A step over the square root of 12, where the largest value of what shares a scale is 8 (rows) or 3 (groups of 32)
# times its root mean square.
STEPS = {"int8": (8 / 127 / 12**0.5, 8 / 127 / 12**0.5), "w4a16": (3 / 7 / 12**0.5, 0.0)}


@pytest.fixture(scope="session")
def allowed() -> Callable[[Path, str], float]:
    """How far a program in a precision may lie from its float answers, a relative root mean square: independent errors
    add in squares, and a trained classifier does not amplify them."""
    return rounding


def rounding(program: Path, precision: str) -> float:
    graph = supply._graph(program, precision)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    products = sum("linear_w" in target for target in targets)
    steps = sum(step**2 for step in STEPS.get(precision, ()))
    return float((2 * len(targets) * ROUNDOFF[precision] ** 2 + products * steps) ** 0.5)
