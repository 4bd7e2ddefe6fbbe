from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.plain import COMPRESSED, STORED, PlainCodec
from edgekit.tensors import DTYPES, TensorSpec


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_comes_back_exactly_at_rate_0(dtype: str) -> None:
    codec = PlainCodec([TensorSpec("x", dtype, ("batch", 9))], 2, None)
    values = np.random.default_rng(0).integers(-100, 100, (5, 9)).astype(DTYPES[dtype])
    assert (codec.decode(codec.encode([values], 0), [values.shape], 0)[0] == values).all()


def test_smooth_features_compress_and_noise_is_stored() -> None:
    codec = PlainCodec([TensorSpec("x", "float32", ("batch", 500))], 1, None)
    smooth = np.linspace(1, 2, 2000, dtype=np.float32).reshape(4, 500)
    noise = np.random.default_rng(0).integers(0x20000000, 0x5FFFFFFF, 2000).astype(np.uint32).view(np.float32)
    assert len(codec.encode([smooth], 0)) < 0.6 * smooth.nbytes
    assert len(codec.encode([noise.reshape(4, 500)], 0)) <= noise.nbytes + 1


def test_floats_beyond_half_precision_are_refused_at_rate_1_alone() -> None:
    codec = PlainCodec([TensorSpec("x", "float32", ("batch",))], 2, None)
    values = np.array([70000], np.float32)
    assert codec.decode(codec.encode([values], 0), [(1,)], 0)[0] == values
    with pytest.raises(CodecError, match="65504"):
        codec.encode([values], 1)


@pytest.mark.parametrize("states_size", [True, False])
def test_a_bomb_is_refused_without_its_memory(states_size: bool) -> None:
    codec = PlainCodec([TensorSpec("x", "float32", ("batch", 100))], 1, None)
    bomb = COMPRESSED + zstandard.ZstdCompressor(write_content_size=states_size).compress(bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(CodecError):
        codec.decode(bomb, [(50, 100)], 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_bytes_after_the_compressed_frame_are_refused() -> None:
    codec = PlainCodec([TensorSpec("x", "float32", ("batch", 100))], 1, None)
    values = np.zeros((3, 100), np.float32)
    payload = codec.encode([values], 0)
    assert payload[:1] == COMPRESSED
    for damaged in (payload + b"x", payload + payload[1:], STORED + payload[1:], b"\2" + payload[1:]):
        with pytest.raises(CodecError):
            codec.decode(damaged, [values.shape], 0)
