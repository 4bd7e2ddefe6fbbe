from __future__ import annotations

import json
import math
from importlib.resources import files

import pytest
import torch
from torch.nn import functional

from edgekit.bundle.loop import Choice
from edgekit.model import Model
from edgekit.zoo.docstring_lm import EMBEDDED, END, SYMBOLS, WIDTH, ByteModel, docstring_lm, run_through
from edgekit.zoo.minilm import sentences


@pytest.fixture(scope="module")
def model() -> Model:
    return docstring_lm()


def test_a_step_is_the_unit_of_torch() -> None:
    torch.manual_seed(0)
    step = ByteModel(width=24)
    unit = torch.nn.GRU(EMBEDDED, 24)
    unit.weight_ih_l0, unit.bias_ih_l0 = step.from_input.weight, step.from_input.bias
    unit.weight_hh_l0, unit.bias_hh_l0 = step.from_state.weight, step.from_state.bias
    tokens = torch.randint(0, SYMBOLS, (30, 3))
    with torch.no_grad():
        wanted, _ = unit(step.embedding(tokens))
        state = torch.zeros(3, 24)
        for row, hidden in zip(tokens, wanted, strict=True):
            logits, state = step(row, state)
            # The same sums in another order: roundings of numbers below 1, over 30 steps that shrink them.
            torch.testing.assert_close(state, hidden, rtol=0, atol=64 * torch.finfo(torch.float32).eps)
            torch.testing.assert_close(logits, step.head(state))


def test_it_knows_how_english_goes_on(model: Model) -> None:
    """Better than the frequencies of single bytes (about 4.2 bits in English), on text that it was not trained on."""
    bits, count = 0.0, 0
    for text in sentences()[:12]:
        samples = run_through(model.module, [text])
        following = torch.tensor(list(text.encode()))
        with torch.no_grad():
            logits = torch.cat([model.module(*sample.values())[0] for sample in samples[:-1]])
        bits += functional.cross_entropy(logits, following, reduction="sum").item() / math.log(2)
        count += len(following)
    assert bits / count < 3.5


def test_the_checkpoint_says_what_it_learned_from(model: Model) -> None:
    told = json.loads(files("edgekit.zoo").joinpath("checkpoints/docstring-lm.json").read_text(encoding="utf-8"))
    assert told["parameters"] == sum(value.numel() for value in model.module.parameters())
    assert told["width"] == WIDTH
    assert "Python Software Foundation" in told["text_license"]


def test_its_loop_fits_its_tensors(model: Model) -> None:
    loop = model.loop
    assert loop is not None and isinstance(loop.feed, Choice)
    assert (loop.feed.start, loop.feed.stop) == (END, END)
    assert {entry.input for entry in loop.carried} | {loop.feed.input} == set(model.example_inputs)
    assert {loop.feed.output} | {entry.output for entry in loop.carried} == set(model.output_names)
    assert any(sample["state"].abs().max() > 0 for sample in model.calibration)
