"""Decoding that never gives another result: by the packed kernel where it proves itself, by the codec where not.

    with Bundle.open(path) as bundle, open_decoder(bundle, "cut") as decoder:
        features = decoder.decode(symbols, rates, places)

At the start the kernel decodes made-up symbols of every rate; what it gives is compared once with the codec in numpy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import EdgekitError, UnknownNameError, UsageError
from edgekit.registry import CODECS
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.cubins.driver import Gpu, open_gpu
from edgekit.runtimes.cubins.kernel_set import KernelSet
from edgekit.runtimes.cubins.ragged_decode import RaggedDecoder

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

logger = logging.getLogger(__name__)

# The kernel multiplies and adds as numpy does, or rounds once where numpy rounds twice.
ALLOWED = 2.0**-23
# Symbols that int8 holds, and some that it does not: each has a kernel of its own.
MAGNITUDES = (9, 900)
LOOSE_SIZE = 5  # of an axis that the bundle leaves open


class FeatureDecoder:
    """`why`: for what reason the codec decodes in place of the GPU, None where the GPU does. Use it in `with`."""

    def __init__(
        self, codec: TransformCodec, on_gpu: RaggedDecoder | None = None, gpu: Gpu | None = None, why: str | None = None
    ) -> None:
        self.codec, self.why = codec, why
        self._on_gpu, self._gpu = on_gpu, gpu

    def decode(self, symbols: Sequence[np.ndarray], rates: Sequence[int], places: tuple[int, ...]) -> np.ndarray:
        """float32 [B, channels, ...] or [B, ..., channels] from symbols int32 [kept, 1, positions] of each item, as
        TransformCodec.symbols gives them; `places`: the sizes of the axes beside batch and channels."""
        if self._on_gpu is not None:
            return self._on_gpu.decode(symbols, rates, places)
        return reference(self.codec, symbols, rates, places)

    def close(self) -> None:
        if self._gpu is not None:
            self._gpu.close()

    def __enter__(self) -> FeatureDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_decoder(bundle: Bundle, codec: str, *, strict: bool = False, library: str | None = None) -> FeatureDecoder:
    """For the transform codec of that name in `bundle`; says once, as a warning, why it does not use the GPU.

    `strict`: raise instead (DeviceError, BundleError, SessionError, UsageError). `library`: CUDA's driver, where it is
    not where the system looks. Raises UnknownNameError.
    """
    known = transform_codecs(bundle)
    if codec not in known:
        raise UnknownNameError("transform codec", codec, known)
    opened = known[codec]
    gpu: Gpu | None = None
    try:
        gpu = open_gpu(library=library)
        on_gpu = RaggedDecoder(KernelSet(bundle, gpu), opened)
        error = self_check(on_gpu)
        if not error <= ALLOWED:
            raise UsageError(
                f"the packed kernel errs by {error:.3g} of the largest value on {gpu.name}, allowed {ALLOWED:.3g}",
                hint="pack the kernels again, and see that the driver fits the GPU",
            )
        return FeatureDecoder(opened, on_gpu, gpu)
    except BaseException as reason:
        if gpu is not None:
            gpu.close()
        if strict or not isinstance(reason, EdgekitError):
            raise
        logger.warning("features of %s are decoded in numpy: %s", codec, reason.message)
        return FeatureDecoder(opened, why=reason.message)


def transform_codecs(bundle: Bundle) -> dict[str, TransformCodec]:
    """By name. Raises CodecError for tables that do not fit."""
    found = {}
    for entry in bundle.manifest.codecs:
        if CODECS.load(entry.kind) is TransformCodec and entry.tables is not None:
            codec = open_codec(entry, bundle.asset_path(entry.tables).read_bytes())
            assert isinstance(codec, TransformCodec)
            found[entry.name] = codec
    return found


def self_check(decoder: RaggedDecoder) -> float:
    """The largest difference between `decoder` and its codec, relative to the largest value; infinity for NaN."""
    codec, generator = decoder.codec, np.random.default_rng(0)
    shape = tuple(size if isinstance(size, int) else LOOSE_SIZE for size in codec.features[0].shape[1:])
    places = tuple(size for axis, size in enumerate(shape, 1) if axis != codec.axis)
    rates = list(range(codec.rates))
    worst = 0.0
    for magnitude in MAGNITUDES:
        symbols = [
            generator.integers(-magnitude, magnitude + 1, (len(codec.layouts[rate].channels), 1, math.prod(places)))
            for rate in rates
        ]
        narrow = [one.astype(np.int32) for one in symbols]
        wanted = reference(codec, narrow, rates, places)
        got = decoder.decode(narrow, rates, places)
        error = float(np.abs(got - wanted).max(initial=0)) / max(float(np.abs(wanted).max(initial=0)), 1e-30)
        worst = max(worst, error if error == error else math.inf)
    return worst


def reference(
    codec: TransformCodec, symbols: Sequence[np.ndarray], rates: Sequence[int], places: tuple[int, ...]
) -> np.ndarray:
    """The same batch by the codec itself."""
    channels = codec.features[0].shape[codec.axis]
    assert isinstance(channels, int)
    shape = list(places)
    shape.insert(codec.axis - 1, channels)
    items = [codec.reconstruct(one, (1, *shape), rate) for one, rate in zip(symbols, rates, strict=True)]
    return np.concatenate(items) if items else np.zeros((0, *shape), np.float32)
