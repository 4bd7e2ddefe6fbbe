"""A part of a bundle, served: its session, its queue, and the codecs through which features come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.bundle.manifest import Part, Variant
from edgekit.errors import InputError, MismatchError
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.load import load
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.batching import Arrays, Batcher, BatchOptions, Finished
from edgekit.runtimes.server.refinement import CoarseFrames
from edgekit.runtimes.server.statistics import Statistics


@dataclass(frozen=True)
class Link:
    """A codec of the bundle, open: `digest` is what both ends compare."""

    entry: CodecEntry
    digest: str
    codec: Codec


class ServedModel:
    """`version` counts the bundles of one name. Close it to free its session; the bundle is the caller's."""

    def __init__(
        self,
        bundle: Bundle,
        part: Part,
        version: str,
        *,
        threads: int | None = None,
        batch: BatchOptions = BatchOptions(),
    ) -> None:
        """Raises like `load`, and CodecError for tables that do not fit."""
        self.bundle, self.part, self.version = bundle, part, version
        self.name = model_name(bundle.manifest.name, part.name)
        self.inputs = tuple(entry.spec() for entry in part.inputs)
        self.outputs = tuple(entry.spec() for entry in part.outputs)
        self.statistics = Statistics()
        self.coarse = CoarseFrames()
        self.on_batch: Callable[[Finished], None] | None = None
        self._session = load(bundle, part=part.name, threads=threads)
        self.batching = batch
        try:
            self.links = {link.digest: link for link in _links(bundle, part)}
            self._batcher = Batcher(self.name, self._session.run, self.is_batchable, batch, self._observe)
        except BaseException:
            self._session.close()
            raise

    @cached_property
    def is_batchable(self) -> bool:
        """Every tensor's first axis is one and the same dynamic dimension."""
        first = {spec.shape[0] if spec.shape else 1 for spec in (*self.inputs, *self.outputs)}
        return len(first) == 1 and isinstance(next(iter(first)), str)

    @property
    def depth(self) -> int:
        return self._batcher.depth

    @property
    def is_idle(self) -> bool:
        return self._batcher.is_idle

    @cached_property
    def plans(self) -> dict[str, Variant]:
        """Plan digest -> the variant, of those that this part is in."""
        manifest = self.bundle.manifest
        return {
            manifest.plan_digest(variant.name): variant
            for variant in manifest.variants
            if self.part.name in variant.parts
        }

    def link_of(self, plan: str) -> Link:
        """The codec through which `plan` (a whole digest) brings this part its features. Raises MismatchError."""
        variant = self.plans.get(plan)
        codec = _codec_of(self.bundle, variant, self.part) if variant is not None else None
        found = [link for link in self.links.values() if link.entry.name == codec]
        if not found:
            raise MismatchError(
                f"{self.name} is not reached by a codec in the plan {plan[:16]}", hint="give both ends the same bundle"
            )
        return found[0]

    def _observe(self, batch: Finished) -> None:
        self.statistics.ran(batch)
        if self.on_batch is not None:
            self.on_batch(batch)

    def check(self, tensors: Arrays) -> None:
        """Raises InputError for names, dtypes, shapes or a batch that this model does not take."""
        names = [spec.name for spec in self.inputs]
        if set(tensors) != set(names):
            raise InputError(f"{self.name}: input names {sorted(tensors)}, allowed {sorted(names)}")
        for spec in self.inputs:
            reason = spec.mismatch(tensors[spec.name])
            if reason is not None:
                raise InputError(f"{self.name}: input {spec.name!r} has {reason}")
        if self.is_batchable:
            rows = {len(array) for array in tensors.values()}
            if len(rows) != 1 or not 1 <= min(rows) <= self.batching.max_batch:
                raise InputError(
                    f"{self.name}: a batch of {sorted(rows)}, allowed 1 to {self.batching.max_batch}, the same for all"
                )

    def run(self, samples: Sequence[Arrays], deadline: float) -> tuple[dict[str, np.ndarray], int, int]:
        """Each sample checked and run, answers joined along the first axis; nanoseconds in the queue and in the model.

        `deadline` on `time.monotonic`'s clock. Raises InputError, and like `Batcher.infer`.
        """
        for sample in samples:
            self.check(sample)
        ran = self._batcher.infer(samples, deadline)
        outputs = (
            dict(ran[0].outputs)
            if len(ran) == 1
            else {spec.name: np.concatenate([entry.outputs[spec.name] for entry in ran]) for spec in self.outputs}
        )
        # Samples of one request that ran in one batch took its time once.
        compute = {entry.started_ns: entry.compute_ns for entry in ran}
        return outputs, max(entry.queue_ns for entry in ran), sum(compute.values())

    def feeds(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What another part or a codec calls its tensors, under this part's names: by name, else in order."""
        names = [spec.name for spec in self.inputs]
        if set(features) == set(names):
            return dict(features)
        if len(features) != len(names):
            raise InputError(f"{self.name}: {len(features)} features, allowed {len(names)}: {', '.join(names)}")
        return dict(zip(names, features.values(), strict=True))

    def close(self) -> None:
        """What waits is finished first."""
        self._batcher.close()
        self._session.close()


def _codec_of(bundle: Bundle, variant: Variant, part: Part) -> str | None:
    """The name of the codec before `part` in `variant`; None on the device."""
    remote = [name for name in variant.parts if bundle.manifest.part(name).tier != "device"]
    return variant.codecs[remote.index(part.name)] if part.name in remote else None


def _links(bundle: Bundle, part: Part) -> list[Link]:
    """The codecs that carry what goes into `part`, in any variant."""
    names = {_codec_of(bundle, variant, part): None for variant in bundle.manifest.variants}
    return [open_link(bundle, name) for name in names if name is not None]


def open_link(bundle: Bundle, name: str) -> Link:
    """The codec of that name of a bundle. Raises UnknownNameError for its kind, CodecError for its tables."""
    entry = bundle.manifest.codec(name)
    tables = bundle.asset_path(entry.tables).read_bytes() if entry.tables else None
    return Link(entry, bundle.manifest.codec_digest(name), open_codec(entry, tables))
