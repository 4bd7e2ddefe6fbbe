"""What a request may bring: the inputs of the whole model, whether some arrays are those, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.errors import InputError, SessionError, UsageError
from edgekit.runtimes.coordinator.parts import DeviceParts
from edgekit.runtimes.protocol.frames import LONGEST_S
from edgekit.runtimes.session import Feeds
from edgekit.tensors import TensorSpec

Specs = tuple[TensorSpec, ...]


def whole_model_specs(manifest: Manifest, parts: DeviceParts) -> tuple[Specs, Specs]:
    """Inputs and outputs of the whole model: those of the first and the last part of a variant that can run.

    Raises SessionError where none can."""
    usable = parts.usable
    if not usable:
        raise SessionError(
            f"no variant of {manifest.name} can run here: {'; '.join(parts.missing.values())}",
            hint="install the runtime that it names",
        )
    variant = manifest.variant(parts.local or usable[0])
    first, last = manifest.part(variant.parts[0]), manifest.part(variant.parts[-1])
    return tuple(entry.spec() for entry in first.inputs), tuple(entry.spec() for entry in last.outputs)


def check_feeds(feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
    """Raises InputError for other names, dtypes or shapes."""
    if set(feeds) != {spec.name for spec in specs}:
        raise InputError(
            f"input names {sorted(feeds)}, allowed {sorted(spec.name for spec in specs)}",
            hint="pass exactly the inputs that `edgekit inspect` lists",
        )
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {spec.name!r} is a {type(array).__name__}, allowed a numpy array")
        reason = spec.mismatch(array)
        if reason is not None:
            raise InputError(f"input {spec.name!r} has {reason}", hint="`edgekit inspect` shows the shapes")


def checked_deadline_ms(deadline_ms: float | None) -> float | None:
    """Raises UsageError for one that cannot be, or that no node would take."""
    if deadline_ms is None:
        return None
    if not isinstance(deadline_ms, int | float) or not 0 < deadline_ms <= 1e3 * LONGEST_S:
        raise UsageError(
            f"a deadline of {deadline_ms!r:.40} ms, allowed a number above 0, at most {1e3 * LONGEST_S:g}",
            hint="such as deadline_ms=300",
        )
    return deadline_ms
