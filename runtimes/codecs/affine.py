"""Affine quantization of one feature per channel, to 8, 4 or 2 bits, entropy-coded.

q = clip(round((x - low) / scale), 0, 2^bits - 1) in float32, which IEEE 754 fixes; x' = low + scale q. Ranges come from
calibration; what lies outside saturates, as it would in an int8 layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import CodecError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.clustering import cluster_histograms
from edgekit.runtimes.codecs.entropy import TABLE_TOTAL, decode_indices, encode_indices, integer_table
from edgekit.runtimes.codecs.range_coder import exact_model
from edgekit.runtimes.codecs.tables import array, read_tables, setting, write_tables

KIND = "affine"
BITS = (8, 4, 2)  # of each rate


class AffineCodec(Codec):
    """One float32 feature [B, C, ...] or [B, ..., C].

    Tables: setting `channel_axis`; arrays `low` and `scale` float32 [3, C], `index` uint8 [3, C], and for each rate
    `frequencies<bits>` uint16 [classes, 2^bits], each row's sum 2^16.
    """

    def _load(self, tables: bytes | None) -> None:
        settings, arrays = read_tables(tables, KIND)
        if len(self.features) != 1 or self.features[0].dtype != "float32" or len(self.features[0].shape) < 2:
            raise CodecError("an affine codec carries one float32 feature of two dimensions or more")
        if not 1 <= self.rates <= len(BITS):
            raise CodecError(f"{self.rates} rates, allowed 1 to {len(BITS)}")
        self.axis = setting(settings, "channel_axis", int, 1, len(self.features[0].shape) - 1)
        self.low = array(arrays, "low", "<f4", (len(BITS), None))
        self.scale = array(arrays, "scale", "<f4", self.low.shape)
        index = array(arrays, "index", "|u1", self.low.shape)
        if not (self.scale > 0).all():
            raise CodecError("a scale of zero or less")
        self.models = []
        for bits, classes in zip(BITS, index, strict=True):
            rows = array(arrays, f"frequencies{bits}", "<u2", (None, 1 << bits)).astype(np.int64)
            if (rows < 1).any() or (rows.sum(1) != TABLE_TOTAL).any() or (classes >= len(rows)).any():
                raise CodecError(f"frequencies of {bits} bits do not fit")
            shared = [exact_model(row << 8) for row in rows]
            self.models.append([shared[number] for number in classes])

    def _encode(self, arrays: Sequence[np.ndarray], rate: int) -> bytes:
        feature = arrays[0]
        if not np.isfinite(feature).all():
            raise CodecError("a feature that is not finite")
        rows, low, scale = self._rows(feature), self.low[rate][:, None], self.scale[rate][:, None]
        with np.errstate(over="ignore"):
            levels = np.clip(np.rint((rows - low) / scale), 0, (1 << BITS[rate]) - 1)
        return encode_indices(levels.astype(np.int32).ravel(), self.models[rate], self._counts(feature.shape))

    def _decode(self, payload: bytes, shapes: Sequence[tuple[int, ...]], rate: int) -> list[np.ndarray]:
        shape = shapes[0]
        levels = decode_indices(payload, self.models[rate], self._counts(shape))
        rows = levels.reshape(self.low.shape[1], -1 if levels.size else 0).astype(np.float32)
        rows = rows * self.scale[rate][:, None] + self.low[rate][:, None]
        first = (shape[self.axis], *(size for at, size in enumerate(shape) if at != self.axis))
        return [np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, self.axis))]

    def _rows(self, feature: np.ndarray) -> np.ndarray:
        """[C, elements of a channel]."""
        first = np.moveaxis(feature, self.axis, 0)
        return first.reshape(first.shape[0], -1 if feature.size else 0)

    def _counts(self, shape: tuple[int, ...]) -> np.ndarray:
        channels = shape[self.axis]
        if channels != self.low.shape[1]:
            raise CodecError(f"{channels} channels in {list(shape)}, allowed {self.low.shape[1]}")
        return np.full(channels, int(np.prod(shape)) // channels if channels else 0, np.int64)


def fit_affine_tables(
    samples: np.ndarray, channel_axis: int = 1, *, clipped_share: float = 1e-4, classes: int = 32
) -> bytes:
    """Tables of an AffineCodec from calibration `samples`, float [N, C, ...] or [N, ..., C].

    `clipped_share` of a channel's values may lie outside of its 8-bit range; for 4 and 2 bits the range is the one of
    the least squared error among fractions of that. Raises CodecError for samples that are none or not finite.
    """
    samples = np.moveaxis(np.asarray(samples, np.float32), channel_axis, 0)
    rows = np.ascontiguousarray(samples).reshape(len(samples), -1)
    if rows.size == 0 or not np.isfinite(rows).all():
        raise CodecError("the calibration samples are none, or not finite")
    low, high = np.quantile(rows, [clipped_share / 2, 1 - clipped_share / 2], axis=1).astype(np.float32)
    arrays: dict[str, np.ndarray] = {}
    ranges, indices = [], []
    for bits in BITS:
        bottom, scale = _best_range(rows, low, high, (1 << bits) - 1)
        levels = np.clip(np.rint((rows - bottom[:, None]) / scale[:, None]), 0, (1 << bits) - 1).astype(np.int64)
        places = levels + (np.arange(len(rows)) << bits)[:, None]
        counts = np.bincount(places.ravel(), minlength=len(rows) << bits).reshape(len(rows), -1)
        label = cluster_histograms(counts.astype(np.float32), 1 << (bits - 1), classes)
        totals = np.zeros((int(label.max()) + 1, 1 << bits))
        np.add.at(totals, label, counts)
        arrays[f"frequencies{bits}"] = np.stack([integer_table(row + 0.1) for row in totals]).astype(np.uint16)
        ranges.append((bottom, scale))
        indices.append(label.astype(np.uint8))
    arrays |= {"low": np.stack([r[0] for r in ranges]), "scale": np.stack([r[1] for r in ranges])}
    arrays["index"] = np.stack(indices)
    return write_tables(KIND, {"channel_axis": int(channel_axis)}, arrays)


def _best_range(rows: np.ndarray, low: np.ndarray, high: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Per channel: the lowest value and the scale, float32 [C]."""
    best = np.full(len(rows), np.inf)
    chosen = low.copy(), np.ones(len(rows), np.float32)
    thinned = rows[:, :: max(1, rows.shape[1] // 4096)]
    for share in (1.0,) if top > 15 else (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        middle = np.median(thinned, axis=1).astype(np.float32)
        bottom = (middle + (low - middle) * np.float32(share)).astype(np.float32)
        width = (high - low) * np.float32(share)
        scale = np.maximum(width / np.float32(top), np.maximum(np.abs(bottom), 1e-6) * np.float32(1e-6))
        scale = scale.astype(np.float32)
        levels = np.clip(np.rint((thinned - bottom[:, None]) / scale[:, None]), 0, top)
        error = ((levels * scale[:, None] + bottom[:, None] - thinned) ** 2).mean(1)
        better = error < best
        best[better] = error[better]
        chosen[0][better], chosen[1][better] = bottom[better], scale[better]
    return chosen
