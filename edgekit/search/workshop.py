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
    _shelf: OrderedDict[tuple[str, str, tuple[int, ...] | None], tuple[Model, tuple[Step, ...]]] = field(
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

    def pruned(self, variant: str, method: str, keep: tuple[int, ...] | None) -> Model:
        model = self.model(variant)
        return model if keep is None or method == NO_METHOD else PruneTokens(method, keep=keep)(model)

    def prepared(
        self, variant: str = NO_VARIANT, method: str = NO_METHOD, keep: tuple[int, ...] | None = None
    ) -> tuple[Model, tuple[Step, ...]]:
        """Captured and folded, and how that went."""
        key = (variant, method, keep)
        if key not in self._shelf:
            self._shelf[key] = prepare(self.pruned(variant, method, keep), silent)
            while len(self._shelf) > SHELF:
                self._shelf.popitem(last=False)
        self._shelf.move_to_end(key)
        return self._shelf[key]

    def groups(self, variant: str, method: str, keep: tuple[int, ...] | None) -> tuple[Group, ...]:
        return groups(self.prepared(variant, method, keep)[0], self.path)
