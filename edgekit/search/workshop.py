"""Where configurations become captured graphs; what several of them share is made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edgekit.devices.device import Device
from edgekit.exporters.base import Exporter
from edgekit.model import Model
from edgekit.parity import Step
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.preparation import prepare
from edgekit.progress import Progress, silent
from edgekit.quantizers.quantize import QuantizerOptions
from edgekit.search.anatomy import Group, encoder_path, groups
from edgekit.search.narrowing import Shape, lean, narrow, present
from edgekit.search.space import NO_METHOD, NO_VARIANT

# Captured graphs that are kept: a variant of the model by several schedules.
SHELF = 6

Variant = Callable[[Model], Model]


@dataclass
class Workshop:
    """`variants`: name -> what makes the Model of that name from the original; `whole` is the original itself."""

    original: Model
    device: Device
    exporters: Mapping[str, Exporter]
    options: QuantizerOptions
    folder: Path
    threads: int
    progress: Progress
    variants: Mapping[str, Variant] = field(default_factory=dict)
    _models: dict[str, Model] = field(default_factory=dict)
    _shelf: OrderedDict[tuple[str, str, tuple[int, ...] | None, Shape | None], tuple[Model, tuple[Step, ...]]] = field(
        default_factory=OrderedDict
    )

    @cached_property
    def path(self) -> str | None:
        return encoder_path(self.original)

    def model(self, variant: str = NO_VARIANT) -> Model:
        """Not captured."""
        if variant == NO_VARIANT:
            return self.original
        if variant not in self._models:
            self.progress(f"make {variant}", 0, 0)
            self._models[variant] = self.variants[variant](self.original)
        return self._models[variant]

    def pruned(self, variant: str, method: str, keep: tuple[int, ...] | None, shape: Shape | None = None) -> Model:
        """Not captured. `keep` counts every block, those that `shape` leaves out too."""
        model = self.model(variant)
        if shape is not None:
            model = narrow(model, shape, model.calibration or (model.example_inputs,))
        if keep is None or method == NO_METHOD:
            return model if shape is None else lean(model)
        left = keep if shape is None else tuple(keep[block] for block in present(shape))
        return PruneTokens(method, keep=left)(model)

    def prepared(
        self,
        variant: str = NO_VARIANT,
        method: str = NO_METHOD,
        keep: tuple[int, ...] | None = None,
        shape: Shape | None = None,
    ) -> tuple[Model, tuple[Step, ...]]:
        """Captured and folded, and how that went."""
        key = (variant, method, keep, shape)
        if key not in self._shelf:
            self._shelf[key] = prepare(self.pruned(variant, method, keep, shape), silent)
            while len(self._shelf) > SHELF:
                self._shelf.popitem(last=False)
        self._shelf.move_to_end(key)
        return self._shelf[key]

    def groups(
        self, variant: str, method: str, keep: tuple[int, ...] | None, shape: Shape | None = None
    ) -> tuple[Group, ...]:
        captured = self.prepared(variant, method, keep, shape)[0]
        return groups(captured, self.path, None if shape is None else present(shape))
