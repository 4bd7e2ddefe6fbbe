"""A memory of values behind frozen keys, for a node that learns: the discrete key-value bottleneck.

Trauble et al. (ICML 2023, arXiv:2207.11240): each of several codebooks finds the key nearest to its part of a feature,
and every key owns a row of values; the answer is the mean of the rows. Only the rows that were read move in an update,
so that what is learned about some inputs leaves the answers to the others, whose keys differ, as they were. The
network and the keys never change: senders need no new version.
"""

from __future__ import annotations

import numpy as np

from edgekit.errors import CodecError, InputError
from edgekit.runtimes.codecs.tables import array, read_tables, write_tables

KIND = "key-value"


class KeyValueMemory:
    """`values`: float32 [codebooks, keys, width]. An update gives a new memory; readers of the old one go on.

    Indices are int [codebooks read, N], as `ResidualCodec.decode_indices` gives them: the first of the codebooks,
    fewer at a coarser rate. A class memory's width is the number of classes, and what it reads are logits.
    """

    def __init__(self, values: np.ndarray) -> None:
        """Raises CodecError for values of another shape, or not finite."""
        if values.ndim != 3 or values.dtype != np.float32 or values.size == 0 or not np.isfinite(values).all():
            raise CodecError(
                f"values of {values.dtype} {list(values.shape)}, allowed finite float32 [codebooks, keys, width]"
            )
        self.values = values

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The mean of the rows that the indices name: float32 [N, width]. Raises InputError."""
        self._check(indices)
        rows: np.ndarray = self.values[np.arange(len(indices))[:, None], indices]
        mean: np.ndarray = rows.mean(0, dtype=np.float32)
        return mean

    def update(self, indices: np.ndarray, target: np.ndarray, rate: float) -> KeyValueMemory:
        """One step of gradient descent on the rows that were read, each row by the mean over the samples that read it.

        `target`: integers [N], the classes, for the cross-entropy of the softmax; or floats [N, width], the gradient
        of any other loss with respect to what `read` gives. A row moves by `rate` times that gradient, whatever the
        number of codebooks and the size of the batch. Raises InputError.
        """
        self._check(indices)
        count, width = indices.shape[1], self.values.shape[2]
        if np.issubdtype(target.dtype, np.integer):
            if target.shape != (count,) or (count and not 0 <= target.min() <= target.max() < width):
                raise InputError(f"classes of shape {list(target.shape)}, allowed [{count}] from 0 to {width - 1}")
            gradient = softmax(self.read(indices))
            gradient[np.arange(count), target] -= 1
        elif target.shape == (count, width) and np.isfinite(target).all():
            gradient = target.astype(np.float32)
        else:
            raise InputError(f"a gradient of shape {list(target.shape)}, allowed finite [{count}, {width}]")
        values = self.values.copy()
        for book, chosen in enumerate(indices):
            sums = np.zeros_like(values[book])
            np.add.at(sums, chosen, gradient)
            readers = np.bincount(chosen, minlength=len(sums))[:, None]
            values[book] -= np.float32(rate) * sums / np.maximum(readers, 1).astype(np.float32)
        return KeyValueMemory(values)

    def save(self) -> bytes:
        return write_tables(KIND, {}, {"values": self.values})

    @classmethod
    def load(cls, data: bytes | None) -> KeyValueMemory:
        """Raises CodecError for anything that `save` does not write."""
        _, arrays = read_tables(data, KIND)
        if len(arrays) != 1:
            raise CodecError(f"{len(arrays)} arrays, allowed one: values")
        return cls(array(arrays, "values", "<f4", (None, None, None)))

    def _check(self, indices: np.ndarray) -> None:
        books, keys, _ = self.values.shape
        fits = indices.ndim == 2 and np.issubdtype(indices.dtype, np.integer) and 1 <= len(indices) <= books
        if not fits or (indices.size and not 0 <= indices.min() <= indices.max() < keys):
            raise InputError(
                f"indices of {indices.dtype} {list(indices.shape)}, allowed integers [1 to {books}, N] below {keys}"
            )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(-1, keepdims=True)
    return shares
