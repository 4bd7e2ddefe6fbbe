"""Decoding by the packed kernel, launched through the emulated driver, beside the numpy codec."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError, SessionError, UsageError
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.cubins import KernelSet, RaggedDecoder, open_gpu
from edgekit.runtimes.cubins.ragged_decode import channels_first, pack_symbols, rate_tables

from .conftest import CHANNELS, POSITIONS, Emulator, scene


def received(codec: TransformCodec, rates: list[int], scale: float = 1.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Symbols as they come off the wire, and what the codec makes of the same bytes."""
    symbols, decoded = [], []
    for feature, rate in zip(scale * scene(len(rates), 1), rates, strict=True):
        payload = codec.encode([feature[None]], rate)
        symbols.append(codec.symbols(payload, (1, *feature.shape), rate))
        decoded += codec.decode(payload, [(1, *feature.shape)], rate)
    return symbols, np.concatenate(decoded)


def animate(emulator: Emulator, kernels: KernelSet, bundle: Bundle) -> None:
    for one in kernels.cubins:
        if one.kernel.startswith("ragged-"):
            emulator.run(one, bundle.asset_path(one.file).read_bytes())


@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["symbols of int8", "symbols of int16"])
def test_a_batch_of_all_rates_is_what_the_codec_decodes(
    emulator: Emulator, packed: Bundle, codec: TransformCodec, scale: float
) -> None:
    symbols, decoded = received(codec, [0, 2, 1, 1, 0], scale)
    assert pack_symbols(symbols, [0] * 5).symbols.dtype == (np.int8 if scale == 1 else np.int16)
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        animate(emulator, kernels, packed)
        got = RaggedDecoder(kernels, codec).decode(symbols, [0, 2, 1, 1, 0], POSITIONS)
    assert np.array_equal(got, decoded)
    assert len(emulator.launches) == 1


def test_a_rotation_and_a_mean_are_undone_as_in_float64(
    emulator: Emulator, packed: Bundle, codec: TransformCodec
) -> None:
    rates = [2, 0, 1]
    symbols, decoded = received(codec, rates)
    generator = np.random.default_rng(2)
    inverse = np.linalg.qr(generator.normal(size=(CHANNELS, CHANNELS)))[0].astype(np.float32)
    mean = generator.normal(size=CHANNELS).astype(np.float32)
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        animate(emulator, kernels, packed)
        got = RaggedDecoder(kernels, codec, inverse, mean).decode(symbols, rates, POSITIONS)
    values = np.moveaxis(decoded.astype(np.float64), 1, 3)
    wanted = (values + mean) @ inverse
    # A float32 sum of n terms is off by at most n ulps of the sum of their magnitudes, and there are two such sums.
    allowed = 2 * CHANNELS * 2.0**-24 * ((np.abs(values) + np.abs(mean)) @ np.abs(inverse))
    assert (np.abs(np.moveaxis(got, 1, 3) - wanted) <= allowed).all()


def test_bf16_comes_as_the_bits_of_the_nearest(emulator: Emulator, packed: Bundle, codec: TransformCodec) -> None:
    symbols, decoded = received(codec, [0, 1])
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        animate(emulator, kernels, packed)
        got = RaggedDecoder(kernels, codec, kind="bf16").decode(symbols, [0, 1], POSITIONS)
    assert got.dtype == np.uint16
    wide = (got.astype(np.uint32) << 16).view(np.float32)
    assert (np.abs(wide - decoded) <= 2.0**-8 * np.abs(decoded)).all()


def test_a_launch_covers_positions_and_items_and_frees_what_it_took(
    emulator: Emulator, packed: Bundle, codec: TransformCodec
) -> None:
    symbols, _ = received(codec, [0] * 7)
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        animate(emulator, kernels, packed)
        decoder = RaggedDecoder(kernels, codec)
        before = emulator.alive
        decoder.decode(symbols, [0] * 7, POSITIONS)
        assert emulator.alive == before
        (launch,) = emulator.launches
        assert launch.name == "_dequantize_kernel" and launch.grid == (2, 7, 1)  # 20 channels in tiles of 16
        assert launch.threads == 128 and launch.shared_bytes <= 48 * 1024
        # Nine pointers, the number of positions, and two null pointers of scratch memory where eight bytes begin anew.
        numbers = np.frombuffer(launch.parameters, np.uint64)
        assert len(numbers) == 12 and (numbers[:9] % 256 == 0).all() and len(set(numbers[:9])) == 9
        assert int(numbers[9]) & 0xFFFFFFFF == 15 and not numbers[10:].any()
    assert emulator.alive == (0, 0, 0)


def test_no_items_launch_nothing(emulator: Emulator, packed: Bundle, codec: TransformCodec) -> None:
    with open_gpu(library=emulator.path) as gpu:
        got = RaggedDecoder(KernelSet(packed, gpu), codec).decode([], [], POSITIONS)
    assert got.shape == (0, CHANNELS, *POSITIONS) and emulator.launches == []


def test_what_fails_on_the_gpu_is_told_and_the_memory_comes_back(
    emulator: Emulator, packed: Bundle, codec: TransformCodec
) -> None:
    symbols, decoded = received(codec, [0])
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        animate(emulator, kernels, packed)
        decoder = RaggedDecoder(kernels, codec)
        before = emulator.alive
        emulator.fail("cuCtxSynchronize", 700)
        with pytest.raises(SessionError, match="CUDA_ERROR_ILLEGAL_ADDRESS \\(700\\), an illegal memory access"):
            decoder.decode(symbols, [0], POSITIONS)
        assert emulator.alive == before
        assert np.array_equal(decoder.decode(symbols, [0], POSITIONS), decoded)


def test_what_the_kernel_does_not_decode_is_refused(emulator: Emulator, packed: Bundle, codec: TransformCodec) -> None:
    with pytest.raises(UsageError, match="magnitude 32768"):
        pack_symbols([np.full((1, 1, 1), 32768, np.int32)], [0])
    with pytest.raises(UsageError, match="65536 items, allowed 65535"):
        pack_symbols([np.zeros((1, 1, 1), np.int32)] * 65536, [0] * 65536)
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        with pytest.raises(UsageError, match="of 3 components, allowed the 20"):
            RaggedDecoder(kernels, codec, np.eye(3, dtype=np.float32))
        with pytest.raises(DeviceError, match=r"CHANNELS=7.* was packed for sm_87"):
            RaggedDecoder(kernels, codec, np.ones((CHANNELS, 7), np.float32))
        with pytest.raises(UsageError, match="12 positions, allowed the 15"):
            RaggedDecoder(kernels, codec).decode([], [], (3, 4))


def test_tables_are_those_of_the_codec(codec: TransformCodec) -> None:
    tables = rate_tables(codec)
    assert tables.steps.shape == (3, CHANNELS) and tables.classes.shape == (3, CHANNELS, 15) and tables.per_position
    assert tables.classes.max() < len(tables.offsets) and channels_first(codec)
