"""A model that is run step after step: what a step hands to the next one, and what each step is fed.

Iteration-level scheduling needs no more than this to put requests of different lengths into one running batch (Yu et
al., Orca, OSDI 2022; Yao et al., Flover, arXiv:2305.13484).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgekit.bundle.strict import Strict

if TYPE_CHECKING:
    from edgekit.bundle.manifest import TensorEntry


class Carried(Strict):
    """State of a fixed size: what a step gives as `output` the next one takes as `input`; zeros before the first.

    `batch_axis`: along which the requests lie, in both.
    """

    output: str
    input: str
    batch_axis: int = Field(default=0, ge=0)


class Chunks(Strict):
    """The request brings one sequence; a step sees `context` old elements and `hop` new ones of it, along the last
    axis of `input`. Zeros stand before the sequence, and behind it where the last chunk is not full."""

    kind: Literal["chunks"] = "chunks"
    input: str
    hop: int = Field(ge=1)
    context: int = Field(default=0, ge=0)


class Choice(Strict):
    """The request brings a prompt of token ids, fed one a step behind `start`; then each step is fed what was chosen
    from the `output` (logits, the vocabulary last) of the one before, until `stop`.

    `encoding`: `bytes` where the ids are those of UTF-8 bytes, so that a request may bring text.
    """

    kind: Literal["choice"] = "choice"
    input: str
    output: str
    start: int | None = None
    stop: int | None = None
    encoding: Literal["ids", "bytes"] = "ids"


class Loop(Strict):
    """`max_steps`: no request takes more of them, prompt or sequence included."""

    carried: tuple[Carried, ...] = Field(min_length=1)
    feed: Annotated[Chunks | Choice, Field(discriminator="kind")]
    max_steps: int = Field(ge=1)

    def check_tensors(self, part: str, inputs: Sequence[TensorEntry], outputs: Sequence[TensorEntry]) -> None:
        """Raises ValueError where they are not those of one step of this loop."""
        given, gives = {entry.name: entry for entry in inputs}, {entry.name: entry for entry in outputs}
        needed = {self.feed.input, *(entry.input for entry in self.carried)}
        if set(given) != needed:
            raise ValueError(f"the loop of part {part!r} feeds {sorted(needed)}, its inputs are {sorted(given)}")
        read = {entry.output for entry in self.carried}
        read |= {self.feed.output} if isinstance(self.feed, Choice) else set()
        if not read <= set(gives):
            raise ValueError(f"the loop of part {part!r} reads {sorted(read)}, its outputs are {sorted(gives)}")
        for entry in self.carried:
            before, after, axis = given[entry.input], gives[entry.output], entry.batch_axis
            sizes = before.shape[:axis] + before.shape[axis + 1 :]
            if axis >= len(before.shape) or before.dtype != after.dtype or len(before.shape) != len(after.shape):
                raise ValueError(f"part {part!r} cannot carry {entry.output!r} to {entry.input!r}: they differ")
            if not all(isinstance(size, int) for size in sizes):
                raise ValueError(f"the state {entry.input!r} of part {part!r} has no fixed size: {before.shape}")

    @model_validator(mode="after")
    def _check(self) -> Loop:
        inputs = [entry.input for entry in self.carried]
        if len({*inputs, self.feed.input}) != len(inputs) + 1:
            raise ValueError(f"the inputs {[*inputs, self.feed.input]} of a loop, allowed each once")
        if len({entry.output for entry in self.carried}) != len(inputs):
            raise ValueError(f"the outputs {[entry.output for entry in self.carried]} of a loop, allowed each once")
        if isinstance(self.feed, Choice) and self.feed.output in {entry.output for entry in self.carried}:
            raise ValueError(f"the output {self.feed.output!r} is chosen from and carried, allowed one of them")
        return self
