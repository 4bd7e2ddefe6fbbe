"""Dequantizing ragged batches, from the bytes that devices send: the codec's own values, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import UsageError
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.runtimes.cubins.ragged_decode import channels_first, rate_tables
from edgekit.runtimes.kernels.ragged_dequantize import DEQUANTIZE, dequantize
from edgekit.runtimes.kernels.ragged_items import Items, pack_items
from edgekit.tensors import TensorSpec

CHANNELS, POSITIONS, KEPT, PLACES = 70, (3, 45), (70, 33, 2), 135


def scene(samples: int, seed: int, channels_last: bool) -> np.ndarray:
    fade = np.exp(-np.arange(CHANNELS) / 9).reshape(-1, 1, 1)
    drawn = (4 * np.random.default_rng(seed).laplace(size=(samples, CHANNELS, *POSITIONS)) * fade).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(drawn, 1, 3)) if channels_last else drawn


@pytest.fixture(scope="module", params=[(1, False), (1, True), (3, True)], ids=["first", "first by position", "last"])
def codec(request: pytest.FixtureRequest) -> TransformCodec:
    axis, per_position = request.param
    features = scene(20, 0, axis == 3)
    tables = fit_transform_tables(features, (0.2, 0.7, 1.9), axis, per_position, rounding=0.4, kept=KEPT)
    return TransformCodec([TensorSpec("feature", "float32", ("batch", *features.shape[1:]))], len(KEPT), tables)


def received(codec: TransformCodec, rates: list[int]) -> tuple[Items, np.ndarray]:
    """Items as they come off the wire, and what the codec makes of the same bytes, positions in one."""
    symbols, decoded = [], []
    for feature, rate in zip(scene(len(rates), 1, codec.axis == 3), rates, strict=True):
        payload = codec.encode([feature[None]], rate)
        symbols.append(codec.symbols(payload, (1, *feature.shape), rate))
        decoded += codec.decode(payload, [(1, *feature.shape)], rate)
    whole = np.concatenate(decoded)
    flat = whole.reshape(len(rates), CHANNELS, -1) if codec.axis == 1 else whole.reshape(len(rates), -1, CHANNELS)
    return pack_items(symbols, rates), flat


def launch(items: Items, codec: TransformCodec, dtype: torch.dtype, mean: float = 0.0) -> torch.Tensor:
    """In the interpreter: `dequantize` takes the reference off the GPU."""
    tables = rate_tables(codec)
    steps, classes, offsets = (torch.from_numpy(one) for one in vars(tables).values())
    means = torch.full_like(steps, mean)
    found = DEQUANTIZE.launch(
        *vars(items).values(), steps, means, classes, offsets, PLACES, dtype, channels_first(codec)
    )
    assert isinstance(found, torch.Tensor)
    return found


def test_the_values_are_the_codecs_bit_for_bit(codec: TransformCodec) -> None:
    items, decoded = received(codec, [0, 2, 1, 1])
    wanted = torch.from_numpy(decoded)
    assert torch.equal(launch(items, codec, torch.float32), wanted)
    assert torch.equal(dequantize(items, codec, PLACES, torch.float32), wanted)
    assert torch.equal(launch(items, codec, torch.bfloat16), wanted.bfloat16())
    assert torch.equal(dequantize(items, codec, PLACES), wanted.bfloat16())


def test_what_is_not_sent_reads_as_its_mean(codec: TransformCodec) -> None:
    items = pack_items([np.zeros((0, 1, PLACES), np.int32)], [2])
    assert bool((launch(items, codec, torch.float32, 3.5) == 3.5).all())


def test_other_positions_than_the_classes_go_by_are_refused(codec: TransformCodec) -> None:
    if codec.per_position:
        with pytest.raises(UsageError, match="134 positions, allowed the 135"):
            dequantize(pack_items([], []), codec, PLACES - 1)
    else:
        assert dequantize(pack_items([], []), codec, PLACES - 1).shape == (0, CHANNELS, PLACES - 1)


def test_a_bundles_codec_asks_for_its_own_shapes(codec: TransformCodec) -> None:
    assert DEQUANTIZE.entries_for is not None
    entries = DEQUANTIZE.entries_for(codec)
    assert {(one.signature["symbols"], one.signature["dense"]) for one in entries} == {
        ("*i8", "*fp32"), ("*i16", "*fp32"), ("*i8", "*bf16"), ("*i16", "*bf16"),
    }  # fmt: skip
    for one in entries:
        (config,) = one.configs
        assert config.constants["COMPONENTS"] == CHANNELS
        assert config.constants["BY_POSITION"] == codec.per_position
        assert config.constants["CHANNELS_FIRST"] == (codec.axis == 1)
