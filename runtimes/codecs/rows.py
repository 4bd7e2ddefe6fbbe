"""Features as symbols, entropy-decoded and no further, for sessions that finish decoding themselves, in a batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RATES = "rates"


class CodedRows(dict[str, np.ndarray]):
    """Rows of one codec, each at its own rate. As a mapping it holds the rates alone, one a row.

    `symbols`: of each row, int32 [kept, 1, positions] (TransformCodec.symbols). `shape`: of the feature behind its
    first axis. `digest`: the codec's.
    """

    def __init__(
        self, digest: str, shape: tuple[int, ...], symbols: Sequence[np.ndarray], rates: Sequence[int]
    ) -> None:
        super().__init__({RATES: np.asarray(rates, np.int32)})
        self.digest, self.shape, self.symbols = digest, shape, tuple(symbols)

    @classmethod
    def of(cls, digest: str, shape: tuple[int, ...], symbols: np.ndarray, rate: int) -> CodedRows:
        """A frame's: `shape` with its rows, `symbols` int32 [kept, rows, positions]."""
        rows = shape[0]
        return cls(digest, shape[1:], [symbols[:, row : row + 1] for row in range(rows)], [rate] * rows)

    @classmethod
    def join(cls, many: Sequence[CodedRows]) -> CodedRows:
        """Of one kind, in order."""
        first = many[0]
        symbols = [symbols for rows in many for symbols in rows.symbols]
        return cls(first.digest, first.shape, symbols, [int(rate) for rows in many for rate in rows[RATES]])

    @property
    def kind(self) -> Hashable:
        """What must agree for two of them to run as one: any rates do."""
        return self.digest, self.shape
