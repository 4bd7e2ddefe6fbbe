"""A pass turns a Model into a new Model: `requires` -> `apply` -> `ensures`. A Pipeline of passes is a pass."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from edgekit.errors import EdgekitError
from edgekit.model import Model
from edgekit.progress import Progress, silent


class Pass(ABC):
    """Subclasses are frozen dataclasses named verb-noun; their fields are the options."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def requires(self, model: Model) -> None:  # noqa: B027 - most passes ask for nothing
        """Raises an EdgekitError where `model` cannot be given to this pass."""

    @abstractmethod
    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        """The new Model, and one line on what was done. `model` is left as it was."""

    def ensures(self, before: Model, after: Model) -> None:  # noqa: B027
        """Raises an EdgekitError where the promise of this pass does not hold."""

    def __call__(self, model: Model, progress: Progress = silent) -> Model:
        self.requires(model)
        start = time.perf_counter()
        after, detail = self.apply(model, progress)
        after = after.evolve(self.name, detail, time.perf_counter() - start)
        self.ensures(model, after)
        return after


class Pipeline(Pass):
    """Runs `passes` in order; when one fails, the error names those that had run."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)

    def __call__(self, model: Model, progress: Progress = silent) -> Model:
        """The history gets a line for each pass, none for the pipeline."""
        return self.apply(model, progress)[0]

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        done: list[str] = []
        for step in self.passes:
            try:
                model = step(model, progress)
            except EdgekitError as error:
                error.trail = f"in pass {step.name}, after {', '.join(done) or 'none'}"
                raise
            done.append(step.name)
        return model, ", ".join(done)
