"""Ragged decoding beside the transform codec itself, from the bytes that devices send."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import UsageError
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.runtimes.kernels.ragged_decode import DECODE, Items, Tables, decode, pack_items, tables_of
from edgekit.tensors import TensorSpec

CHANNELS, POSITIONS, KEPT = 12, (3, 5), (12, 7, 2)
PLACES = 15


def scene(samples: int, seed: int) -> np.ndarray:
    fade = np.exp(-np.arange(CHANNELS) / 3).reshape(-1, 1, 1)
    return (4 * np.random.default_rng(seed).laplace(size=(samples, CHANNELS, *POSITIONS)) * fade).astype(np.float32)


def codec_of(channel_axis: int = 1, per_position: bool = False) -> TransformCodec:
    features = scene(60, 0)
    shape: tuple[int, ...] = (CHANNELS, *POSITIONS)
    if channel_axis == 3:
        features, shape = np.moveaxis(features, 1, 3), (*POSITIONS, CHANNELS)
    tables = fit_transform_tables(features, (0.2, 0.7, 1.9), channel_axis, per_position, rounding=0.4, kept=KEPT)
    return TransformCodec([TensorSpec("feature", "float32", ("batch", *shape))], len(KEPT), tables)


def launch(items: Items, tables: Tables, dtype: torch.dtype = torch.float32, first: bool = False) -> torch.Tensor:
    """In the interpreter: `decode` takes the reference off the GPU."""
    arguments = (items.symbols, items.starts, items.kept, items.rates, *vars(tables).values(), PLACES, dtype, first)
    found = DECODE.launch(*arguments)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["classes by channel", "classes by position"])
def codec(request: pytest.FixtureRequest) -> TransformCodec:
    return codec_of(per_position=request.param)


def received(codec: TransformCodec, rates: list[int]) -> tuple[Items, list[np.ndarray]]:
    """Items as they come off the wire, and what the codec makes of the same bytes."""
    symbols, decoded = [], []
    for feature, rate in zip(scene(len(rates), 1), rates, strict=True):
        if codec.axis == 3:
            feature = np.moveaxis(feature, 0, 2)
        payload = codec.encode([np.ascontiguousarray(feature[None])], rate)
        symbols.append(codec.symbols(payload, (1, *feature.shape), rate))
        decoded += codec.decode(payload, [(1, *feature.shape)], rate)
    return pack_items(symbols, rates), decoded


def test_without_a_rotation_it_gives_the_codecs_own_values_bit_for_bit(codec: TransformCodec) -> None:
    items, decoded = received(codec, [0, 2, 1, 1, 0])
    assert items.kept.tolist() == [12, 2, 7, 7, 12]
    got = launch(items, tables_of(codec, torch.eye(CHANNELS)), first=True)
    assert torch.equal(got, torch.from_numpy(np.concatenate(decoded)).flatten(2))


@pytest.mark.parametrize("per_position", [False, True])
def test_channels_last_is_the_layout_of_a_codec_with_its_channels_last(per_position: bool) -> None:
    codec = codec_of(3, per_position)
    items, decoded = received(codec, [1, 0])
    got = launch(items, tables_of(codec, torch.eye(CHANNELS)))
    assert torch.equal(got, torch.from_numpy(np.concatenate(decoded)).flatten(1, 2))


@pytest.mark.parametrize("first", [False, True])
def test_a_rotation_and_a_mean_are_undone_as_in_float64(codec: TransformCodec, first: bool) -> None:
    rates = [2, 0, 1]
    items, decoded = received(codec, rates)
    generator = torch.Generator().manual_seed(2)
    inverse = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q
    mean = torch.randn(CHANNELS, generator=generator)
    got = launch(items, tables_of(codec, inverse, mean), first=first)
    values = torch.from_numpy(np.concatenate(decoded)).flatten(2).double().transpose(1, 2)
    wanted = (values + mean) @ inverse.double()
    # A float32 sum of n terms is off by at most n ulps of the sum of their magnitudes, and there are two such sums.
    allowed = 2 * CHANNELS * 2.0**-24 * ((values.abs() + mean.abs()) @ inverse.abs().double())
    difference = ((got.transpose(1, 2) if first else got).double() - wanted).abs()
    assert (difference <= allowed).all()


def test_an_item_decodes_alike_alone_and_among_others(codec: TransformCodec) -> None:
    rates = [1, 0, 2, 1]
    tables = tables_of(codec, torch.randn(CHANNELS, 9, generator=torch.Generator().manual_seed(3)))
    items, _ = received(codec, rates)
    together = launch(items, tables)
    for item, rate in enumerate(rates):
        part = items.symbols[items.starts[item] : items.starts[item + 1]]
        starts = torch.tensor([0, len(part)], dtype=torch.int32)
        alone = Items(part, starts, items.kept[item : item + 1], torch.tensor([rate], dtype=torch.int32))
        assert torch.equal(launch(alone, tables)[0], together[item])


def test_what_is_not_sent_reads_as_its_mean(codec: TransformCodec) -> None:
    mean = torch.arange(1.0, CHANNELS + 1)
    items = pack_items([np.zeros((0, 1, PLACES), np.int32)], [1])
    got = launch(items, tables_of(codec, torch.eye(CHANNELS), mean))
    assert torch.equal(got, mean.expand(1, PLACES, CHANNELS))


def test_bf16_is_float32_rounded_once(codec: TransformCodec) -> None:
    items, _ = received(codec, [0, 1])
    tables = tables_of(codec, torch.eye(CHANNELS))
    exact, got = launch(items, tables), launch(items, tables, torch.bfloat16)
    assert torch.equal(got, exact.bfloat16())


@pytest.mark.parametrize(("largest", "kind"), [(127, torch.int8), (128, torch.int16), (32767, torch.int16)])
def test_symbols_are_packed_as_narrow_as_they_fit(codec: TransformCodec, largest: int, kind: torch.dtype) -> None:
    symbols = np.full((2, 1, PLACES), -largest, np.int32)
    items = pack_items([symbols], [0])
    assert items.symbols.dtype == kind and items.symbols.tolist() == symbols.ravel().tolist()
    got = launch(items, tables_of(codec, torch.eye(CHANNELS)))
    wanted = codec.reconstruct(np.pad(symbols, ((0, 10), (0, 0), (0, 0))), (1, CHANNELS, *POSITIONS), 0)
    assert torch.equal(got[0, :, :2], torch.from_numpy(wanted[0, :2]).flatten(1).T)


def test_wider_symbols_and_tables_that_do_not_fit_are_refused(codec: TransformCodec) -> None:
    with pytest.raises(UsageError, match="magnitude 32768"):
        pack_items([np.full((1, 1, 1), 32768, np.int32)], [0])
    by_position = tables_of(codec_of(per_position=True), torch.eye(CHANNELS))
    with pytest.raises(UsageError, match=f"14 positions, allowed the {PLACES}"):
        decode(pack_items([], []), by_position, PLACES - 1)
    with pytest.raises(UsageError, match="of 5 components"):
        tables_of(codec, torch.eye(5))


def test_no_items_make_an_empty_batch(codec: TransformCodec) -> None:
    got = decode(pack_items([], []), tables_of(codec, torch.eye(CHANNELS)), PLACES)
    assert got.shape == (0, PLACES, CHANNELS) and got.dtype == torch.bfloat16
