"""Every codec with tables of its own, and features for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from edgekit.registry import CODECS
from edgekit.runtimes.codecs.affine import fit_affine_tables
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.entropy import integer_table
from edgekit.runtimes.codecs.image import fit_image_tables
from edgekit.runtimes.codecs.residual import ResidualTables
from edgekit.runtimes.codecs.tables import write_tables
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.tensors import TensorSpec

STEPS = tuple(0.05 * 3**k for k in range(5))


@dataclass(frozen=True)
class Case:
    """`draw(batch, seed)` gives features; `errors`: the largest error that each rate may make, None for any."""

    name: str
    kind: str
    specs: tuple[TensorSpec, ...]
    tables: bytes | None
    draw: Callable[[int, int], list[np.ndarray]]
    errors: tuple[float | None, ...]

    def codec(self) -> Codec:
        codec: Codec = CODECS.load(self.kind)(self.specs, len(self.errors), self.tables)
        return codec


def feature(*shape: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("feature", "float32", ("batch", *shape)),)


def laplace(shape: tuple[int, ...], axis: int, seed: int) -> np.ndarray:
    """Channels fade along `axis`, as ordered components do."""
    fade = np.exp(-np.arange(shape[axis]) / 6).reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return (np.random.default_rng(seed).laplace(size=shape) * fade).astype(np.float32)


def _transform(name: str, shape: tuple[int, ...], axis: int, per_position: bool, rounding: float) -> Case:
    tables = fit_transform_tables(laplace((64, *shape), axis, 0), STEPS, axis, per_position, rounding=rounding)
    errors = tuple(step * (1 - rounding + 0.51) for step in STEPS)
    return Case(name, "transform", feature(*shape), tables, lambda b, s: [laplace((b, *shape), axis, 100 + s)], errors)


def _affine(name: str, shape: tuple[int, ...], axis: int) -> Case:
    tables = fit_affine_tables(laplace((64, *shape), axis, 0), axis)
    return Case(
        name, "affine", feature(*shape), tables, lambda b, s: [laplace((b, *shape), axis, 100 + s)], (None,) * 3
    )


def _residual() -> Case:
    generator = np.random.default_rng(3)
    groups, stages, words, width = 2, 3, 8, 4
    scale = (3000 / 2.0 ** np.arange(stages))[None, :, None, None]
    units = np.array([(g, s) for s in range(stages) for g in range(groups)], np.uint8)
    counts = generator.integers(1, 100, (groups, stages, words))
    codewords = np.rint(generator.normal(size=(groups, stages, words, width)) * scale).astype(np.int16)
    penalties = generator.integers(0, 1000, (groups, stages, words)).astype(np.uint32)
    # A free codeword of zeros: no stage makes it worse.
    codewords[:, :, 0], penalties[:, :, 0] = 0, 0
    tables = ResidualTables(
        codewords,
        penalties,
        np.apply_along_axis(integer_table, 2, counts).astype(np.uint16),
        units,
        np.array([6, 4, 2, 1], np.uint16),
        1e-3,
    )
    return Case(
        "residual",
        "residual",
        feature(5, 8),
        write_tables("residual", {}, tables.arrays(0)),
        lambda b, s: [np.random.default_rng(s).normal(size=(b, 5, 8)).astype(np.float32)],
        (None,) * 4,
    )


def _picture(shape: tuple[int, ...], layout: str) -> Case:
    channels = shape[0] if layout == "NCHW" else shape[2]
    mean, std = [120.0, 115.0, 104.0][:channels], [58.0, 57.0, 56.0][:channels]

    def draw(batch: int, seed: int) -> list[np.ndarray]:
        waves = 127 + 100 * np.sin(np.arange(batch * np.prod(shape)) / 9 + seed).reshape(batch, *shape)
        waves += np.random.default_rng(seed).uniform(-20, 20, waves.shape)
        last = np.rint(waves if layout == "NHWC" else np.moveaxis(waves, 1, -1)).astype(np.float32)
        value = (last - np.float32(mean)) / np.float32(std)
        return [np.ascontiguousarray(value if layout == "NHWC" else np.moveaxis(value, -1, 1))]

    return Case(
        f"image {layout} {channels}",
        "image",
        feature(*shape),
        fit_image_tables(mean, std, layout),
        draw,
        (1e-6, None, None, None, None, None),
    )


def _plain() -> Case:
    specs = (*feature(3, 5), TensorSpec("ids", "int64", ("batch", 4)), TensorSpec("mask", "bool", ("batch",)))

    def draw(batch: int, seed: int) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        return [
            generator.normal(size=(batch, 3, 5)).astype(np.float32),
            generator.integers(-(2**40), 2**40, (batch, 4)),
            generator.random(batch) < 0.5,
        ]

    return Case("plain", "plain", specs, None, draw, (0.0, 5e-3))


@cache
def all_cases() -> dict[str, Case]:
    cases = (
        _transform("transform planes", (12, 7, 5), 1, False, 0.5),
        _transform("transform by position", (12, 3, 5), 1, True, 0.4),
        _transform("transform vector", (17,), 1, False, 0.5),
        _transform("transform tokens", (11, 16), 2, False, 0.3),
        _affine("affine planes", (9, 5, 3), 1),
        _affine("affine tokens", (7, 13), 2),
        _residual(),
        _picture((3, 21, 17), "NCHW"),
        _picture((21, 17, 3), "NHWC"),
        _picture((1, 60, 53), "NCHW"),
        _plain(),
    )
    return {case.name: case for case in cases}


CASES = (
    "transform planes",
    "transform by position",
    "transform vector",
    "transform tokens",
    "affine planes",
    "affine tokens",
    "residual",
    "image NCHW 3",
    "image NHWC 3",
    "image NCHW 1",
    "plain",
)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return all_cases()[request.param]


@pytest.fixture
def planes() -> Case:
    return all_cases()["transform planes"]


@pytest.fixture
def cases() -> dict[str, Case]:
    return all_cases()
