"""The discrete key-value bottleneck: a head that sends keys, a memory of values that learns where it is read.

After Trauble et al. (ICML 2023, arXiv:2207.11240): the feature is projected at random for each of many codebooks, whose
keys are fitted without labels and then frozen; values start from what the tail answers (distillation), so that the
memory takes the tail's place, and are updated afterwards on the node (runtimes/codecs/key_value.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import DataError
from edgekit.model import Model
from edgekit.passes.bottleneck.axes import Projection
from edgekit.passes.bottleneck.codebooks import Codebooks, kmeans, rate_prefixes
from edgekit.passes.bottleneck.vector import Layout, fold_head, gather_features, make_tables, run_module
from edgekit.progress import Progress, silent
from edgekit.runtimes.codecs.key_value import KeyValueMemory
from edgekit.runtimes.codecs.residual import KIND, FeatureCoder
from edgekit.runtimes.codecs.tables import write_tables


@dataclass(frozen=True)
class Keyed:
    """`head` ends in what the codec `kind` ("residual") sends with `tables` at one of `rates`, finest first: fewer
    codebooks. `memory` reads what `ResidualCodec.decode_indices` gives, and answers like the tail's first output."""

    head: Model
    kind: str
    tables: bytes
    rates: int
    memory: KeyValueMemory
    detail: str


@dataclass(frozen=True)
class KeyValueBottleneck:
    """`codebooks` random projections of `width` columns, `keys` in each; images are averaged over their positions.

    `distill_steps` steps of `distill_rate` over the calibration data take the values to the tail's answers.
    """

    codebooks: int = 64
    width: int = 8
    keys: int = 32
    rates: int = 8
    distill_steps: int = 60
    distill_rate: float = 0.5
    seed: int = 0

    def insert(self, head: Model, tail: Model, *, progress: Progress = silent) -> Keyed:
        """Leaves both as they are. Raises DataError for several features, or too little calibration data."""
        features = gather_features(head)
        if len(features) != 1:
            raise DataError(f"{len(features)} values cross, allowed one", hint="cut where a single value crosses")
        ((name, feature),) = features.items()
        layout = Layout.of(feature)
        if len(feature) < 2 * self.keys:
            raise DataError(
                f"{len(feature)} calibration samples for {self.keys} keys, allowed at least {2 * self.keys}",
                hint="give more calibration data, or ask for fewer keys",
            )
        with torch.no_grad():
            parts = torch.split(feature, 32)
            answers = torch.cat([run_module(tail, {name: part}) for part in parts])
        pooled = layout.points(feature).mean(1)
        axes = random_axes(pooled, self.codebooks, self.width, self.seed)
        coded = (pooled - axes.mean) @ axes.project
        book = self._keys(coded, progress)
        kept = rate_prefixes(self.codebooks, self.rates)
        tables = make_tables(book, coded, kept)
        indices = FeatureCoder(tables).encode(coded.numpy(), 0)
        memory = self._distil(indices, answers.numpy())
        detail = f"{self.codebooks} codebooks of {self.keys} keys, {len(kept)} rates"
        folded = fold_head(head, {name: layout}, {name: axes}, pooled=True)
        return Keyed(folded, KIND, write_tables(KIND, {}, tables.arrays(0)), len(kept), memory, detail)

    def _keys(self, coded: Tensor, progress: Progress) -> Codebooks:
        """A codebook for each projection, [codebooks, 1, keys, width], in the order of the projections."""
        keys, shares = [], []
        for index, part in enumerate(coded.reshape(len(coded), self.codebooks, self.width).unbind(1)):
            progress("keys", index, self.codebooks)
            found, labels = kmeans(part, self.keys, seed=self.seed + index)
            counts = torch.bincount(labels, minlength=self.keys) + 0.5
            keys.append(found)
            shares.append(counts / counts.sum())
        progress("keys", self.codebooks, self.codebooks)
        units = tuple((group, 0) for group in range(self.codebooks))
        free = torch.zeros(self.codebooks, 1)
        return Codebooks(torch.stack(keys)[:, None], torch.stack(shares)[:, None], free, units)

    def _distil(self, indices: np.ndarray, answers: np.ndarray) -> KeyValueMemory:
        """Values that answer as the tail does, from any number of the first codebooks: what the coarser rates read."""
        start = np.broadcast_to(answers.mean(0), (self.codebooks, self.keys, answers.shape[1]))
        memory = KeyValueMemory(np.ascontiguousarray(start, np.float32))
        rng = np.random.default_rng(self.seed)
        for _ in range(self.distill_steps):
            read = indices[: int(rng.integers(1, self.codebooks + 1))]
            memory = memory.update(read, memory.read(read) - answers, self.distill_rate)
        return memory


def random_axes(points: Tensor, codebooks: int, width: int, seed: int) -> Projection:
    """A Gaussian projection [D, width] of unit-variance columns for each codebook, side by side (section 3 there).

    Columns of `points` [N, D] that never change take no part. Not to be inverted: `restore` is the pseudo-inverse.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = points.mean(0), points.std(0)
    scale = torch.where(deviation > 1e-6, deviation.clamp_min(1e-6).reciprocal(), torch.zeros_like(deviation))
    project = torch.randn(points.shape[1], codebooks * width, generator=generator) * scale[:, None]
    project = project / points.shape[1] ** 0.5
    return Projection(mean, project, torch.linalg.pinv(project))
