"""Features of one cut from many devices, decoded on a GPU by packed kernels; numpy on the host.

`ragged-dequantize` gives the codec's own values, `ragged-decode` undoes a rotation besides. Their files in
runtimes/kernels/ state formula, layout and types; here items and tables are laid out for them, from what
TransformCodec holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.cubins.driver import DeviceArray
from edgekit.runtimes.cubins.kernel_set import KernelSet

PLAIN, ROTATED = "ragged-dequantize", "ragged-decode"
LARGEST_SYMBOL = 32767
MOST_ITEMS = 65535  # programs along the second axis of a grid, one row of them for each item


@dataclass(frozen=True)
class PackedItems:
    """Symbols int8 or int16 of all items back to back, int32 [B + 1] where each starts, int32 [B] of components kept
    and of rates."""

    symbols: np.ndarray
    starts: np.ndarray
    kept: np.ndarray
    rates: np.ndarray


@dataclass(frozen=True)
class RateTables:
    """Steps float32 [rates, components]; classes uint8 [rates, components, positions or 1]; offsets float32
    [classes, 7], which a reconstruction adds to its symbol."""

    steps: np.ndarray
    classes: np.ndarray
    offsets: np.ndarray

    @property
    def per_position(self) -> bool:
        return bool(self.classes.shape[2] > 1)


def pack_symbols(symbols: Sequence[np.ndarray], rates: Sequence[int]) -> PackedItems:
    """`symbols`: int32 [kept, 1, positions] of each item. Raises UsageError for one that int16 does not hold, and for
    more items than a launch takes."""
    if len(symbols) > MOST_ITEMS:
        raise UsageError(f"{len(symbols)} items, allowed {MOST_ITEMS}", hint="decode fewer items at once")
    flat = np.concatenate([one.ravel() for one in symbols]) if symbols else np.zeros(0, np.int32)
    largest = int(np.abs(flat).max(initial=0))
    if largest > LARGEST_SYMBOL:
        raise UsageError(
            f"a symbol of magnitude {largest}, allowed {LARGEST_SYMBOL}", hint="decode this item by its codec"
        )
    if flat.size >= 1 << 31:
        raise UsageError(f"{flat.size} symbols, allowed {(1 << 31) - 1}", hint="decode fewer items at once")
    return PackedItems(
        flat.astype(np.int8 if largest <= 127 else np.int16),
        np.cumsum([0, *(one.size for one in symbols)], dtype=np.int32),
        np.array([len(one) for one in symbols], np.int32),
        np.array(rates, np.int32),
    )


def rate_tables(codec: TransformCodec) -> RateTables:
    """Raises UsageError for rates that do not send leading channels."""
    if any((one.channels != np.arange(len(one.channels))).any() for one in codec.layouts):
        raise UsageError(
            "a codec with gaps in its channels, allowed leading channels alone",
            hint="its features are decoded by the codec itself",
        )
    steps = np.array([one.step for one in codec.layouts], np.float32)
    channels = codec.features[0].shape[codec.axis]
    classes = np.minimum(codec.index, len(codec.offsets) - 1)  # what is not sent has no class, and is not read
    classes = classes.reshape(len(steps), channels, -1)
    return RateTables(np.repeat(steps[:, None], classes.shape[1], 1), classes, codec.offsets)


def channels_first(codec: TransformCodec) -> bool:
    """Raises UsageError for channels between other axes."""
    axes = len(codec.features[0].shape)
    if codec.axis not in (1, axes - 1):
        raise UsageError(f"channels along axis {codec.axis} of {axes}, allowed 1 or {axes - 1}")
    return bool(codec.axis == 1)


class RaggedDecoder:
    """Tables of one codec, on the GPU once; `decode` takes a batch of whatever rates came.

    `inverse` float32 [components, channels] and `mean` float32 [components] of a transform to undo; without them the
    result is the codec's own. `kind`: fp32, or bf16 (as the uint16 of its bits).
    """

    def __init__(
        self,
        kernels: KernelSet,
        codec: TransformCodec,
        inverse: np.ndarray | None = None,
        mean: np.ndarray | None = None,
        kind: str = "fp32",
    ) -> None:
        """Raises UsageError for a codec that the kernel does not decode, DeviceError where no kernel was packed."""
        tables = rate_tables(codec)
        components = tables.classes.shape[1]
        self.codec, self.kind = codec, kind
        self.channels = components if inverse is None else inverse.shape[1]
        self._first = channels_first(codec)
        self._positions = tables.classes.shape[2] if tables.per_position else None
        constants = {
            "COMPONENTS": components,
            "REACH": tables.offsets.shape[1] // 2,
            "BY_POSITION": int(tables.per_position),
            "CHANNELS_FIRST": int(self._first),
        }
        base = np.zeros(components, np.float32) if mean is None else mean.astype(np.float32)
        own = vars(tables)
        if inverse is not None:
            if len(inverse) != components:
                raise UsageError(
                    f"an inverse transform of {len(inverse)} components, allowed the {components} of the codec"
                )
            constants["CHANNELS"] = self.channels
            own = {**own, "inverse": inverse.astype(np.float32)}
            base = base @ own["inverse"]
        self._functions = {
            symbols: kernels.find(
                PLAIN if inverse is None else ROTATED, {"symbols": f"*{symbols}", "dense": f"*{kind}"}, constants
            )
            for symbols in ("i8", "i16")
        }
        self._gpu = kernels.gpu
        own = {**own, "base": np.broadcast_to(base, (len(tables.steps), self.channels))}
        self._tables = {name: self._gpu.upload(array) for name, array in own.items()}

    def decode(self, symbols: Sequence[np.ndarray], rates: Sequence[int], places: tuple[int, ...]) -> np.ndarray:
        """`symbols`: int32 [kept, 1, positions] of each item, as TransformCodec.symbols gives them; `places`: the sizes
        of the axes beside batch and channels. Returns the dense batch [B, channels, ...] or [B, ..., channels]."""
        dense = self.launch(pack_symbols(symbols, rates), places)
        try:
            return self._gpu.download(dense)
        finally:
            self._gpu.free(dense)

    def launch(self, items: PackedItems, places: tuple[int, ...]) -> DeviceArray:
        """The dense batch, left on the GPU for who frees it; what lies between is freed. Waits for the kernel."""
        count, positions = len(items.kept), math.prod(places)
        if self._positions not in (None, positions):
            raise UsageError(f"{positions} positions, allowed the {self._positions} that the tables have classes for")
        dense = self._gpu.allocate(
            (count, self.channels, *places) if self._first else (count, *places, self.channels), self.kind
        )
        if not dense.nbytes:
            return dense
        function = self._functions["i8" if items.symbols.dtype == np.int8 else "i16"]
        tile = function.cubin.constants
        blocks = -(-positions // tile["BLOCK_P"]) * -(-self.channels // tile["BLOCK_C"])
        own: dict[str, DeviceArray] = {}
        try:
            for name, array in vars(items).items():
                own[name] = self._gpu.upload(array)
            function((blocks, count), {**own, **self._tables, "dense": dense, "positions": positions})
            self._gpu.synchronize()
        except BaseException:
            self._gpu.free(dense)
            raise
        finally:
            self._gpu.free(*own.values())
        return dense
