from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgekit.bundle.loop import Carried, Choice, Chunks, Loop
from edgekit.bundle.manifest import Part, TensorEntry

VOICE = Loop(
    carried=(Carried(output="after", input="before", batch_axis=1),), feed=Chunks(input="x", hop=4), max_steps=9
)


def step(loop: Loop | None, **changes: tuple[int | str, ...]) -> Part:
    shapes: dict[str, Any] = {"x": ("n", 4), "before": (2, "n", 3), "y": ("n", 1), "after": (2, "n", 3), **changes}
    inputs, outputs = ("x", "before"), ("y", "after")
    return Part(
        file="step.onnx",
        size_bytes=1,
        sha256="0" * 64,
        name="step",
        format="onnx",
        precision="fp32",
        inputs=tuple(TensorEntry(name=name, dtype="float32", shape=shapes[name]) for name in inputs),
        outputs=tuple(TensorEntry(name=name, dtype="float32", shape=shapes[name]) for name in outputs),
        loop=loop,
    )


def test_a_loop_survives_the_manifest() -> None:
    part = step(VOICE)
    assert Part.model_validate_json(part.model_dump_json()) == part
    assert step(None).loop is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"feed": Chunks(input="z", hop=4)}, "its inputs are"),
        ({"feed": Choice(input="x", output="scores")}, "its outputs are"),
        ({"carried": (Carried(output="gone", input="before"),)}, "its outputs are"),
        ({"carried": (Carried(output="after", input="before", batch_axis=3),)}, "they differ"),
        ({"carried": (Carried(output="after", input="before", batch_axis=0),)}, "no fixed size"),
    ],
)
def test_a_loop_that_does_not_fit_its_part_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        step(VOICE.model_copy(update=changes))


def test_what_is_fed_and_what_is_carried_are_told_apart() -> None:
    carried = (Carried(output="after", input="before"),)
    with pytest.raises(ValidationError, match="allowed each once"):
        Loop(carried=carried, feed=Chunks(input="before", hop=4), max_steps=1)
    with pytest.raises(ValidationError, match="chosen from and carried"):
        Loop(carried=carried, feed=Choice(input="x", output="after"), max_steps=1)
    with pytest.raises(ValidationError, match="allowed each once"):
        Loop(carried=(*carried, Carried(output="after", input="b")), feed=Choice(input="x", output="y"), max_steps=1)
