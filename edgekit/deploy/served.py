"""The parts of a bundle that a server of some tier holds, and what they need of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgekit.bundle import Bundle
from edgekit.bundle.layout import part_files
from edgekit.bundle.manifest import Part, Tier
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.catalog import parts_for
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX
from edgekit.tensors import TensorSpec, shares_batch

# Measured on x86-64 with ONNX Runtime: `edgekit serve` before any weights takes 105 MB, a split EfficientNet-Lite0
# (73 MB of weights in five parts, batches of 16) 569 MiB resident and 697 at its peak: runtimes keep a second copy of
# weights in the layout of their kernels, and arenas keep what the largest batch took.
PROCESS_BYTES = 200 << 20
WEIGHT_COPIES, ARENA = 2.0, 1.5
# A picture of the most pixels that a node takes by default, while it is decoded and resized: 490 MB measured.
DECODING_BYTES = 512 << 20


@dataclass(frozen=True)
class ServedPart:
    """`name` is the model's on the wire: <bundle>.<part>."""

    name: str
    part: Part

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(entry.spec() for entry in self.part.inputs)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(entry.spec() for entry in self.part.outputs)

    @cached_property
    def is_batchable(self) -> bool:
        return shares_batch(spec.shape for spec in (*self.inputs, *self.outputs))

    @property
    def weights_bytes(self) -> int:
        """Of the artifact with what lies beside it, or of its program for torch: one of them is served."""
        sizes = {True: 0, False: 0}
        for file in part_files(self.part):
            sizes[file.file.endswith(PROGRAM_SUFFIX)] += file.size_bytes
        return max(sizes.values())

    def memory_bytes(self, max_batch: int) -> int:
        """Its weights as runtimes hold them, and the peak of activations for each row of a full batch."""
        rows = max_batch if self.is_batchable else 1
        return int(WEIGHT_COPIES * self.weights_bytes + ARENA * rows * self.part.peak_activation_bytes)


def served_parts(bundle: Bundle, tier: Tier) -> tuple[ServedPart, ...]:
    """Raises NodeError where the bundle holds nothing for `tier`."""
    manifest = bundle.manifest
    parts = parts_for(manifest, tier)
    return tuple(ServedPart(model_name(manifest.name, part.name), part) for part in parts)


def memory_bytes(parts: tuple[ServedPart, ...], max_batch: int) -> int:
    """Of a node that serves `parts`, resident, at full batches."""
    return PROCESS_BYTES + sum(part.memory_bytes(max_batch) for part in parts)
