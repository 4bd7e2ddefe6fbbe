"""A byte-level language model of Python docstrings: one gated recurrent unit of 0.47 million parameters.

Trained by samples/training/train_docstring_lm.py on the docstrings of Python's standard library (Python Software
Foundation License 2.0), so that a generator small enough for any machine can be served. It knows how documentation
sounds and nothing of what is true.

The unit is that of Cho et al., arXiv:1406.1078, in the form of PyTorch's `nn.GRU`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.bundle.loop import Carried, Choice, Loop
from edgekit.digests import digest_module
from edgekit.model import Model, Sample, Source
from edgekit.zoo.fashion import load_checkpoint
from edgekit.zoo.minilm import sentences

SYMBOLS, EMBEDDED, WIDTH = 256, 64, 320
END = 0  # stands before the first byte of a text and behind its last
LONGEST = 4096


class ByteModel(nn.Module):
    """One step of the recurrence: a byte and a state in, the next byte's logits and the next state out."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, EMBEDDED)
        self.from_input = nn.Linear(EMBEDDED, 3 * width)
        self.from_state = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [N] and [N, W] -> logits [N, 256] and [N, W]. The gates lie as reset, update, candidate."""
        given, kept = self.from_input(self.embedding(token)), self.from_state(state)
        reset_in, update_in, candidate_in = given.chunk(3, dim=-1)
        reset_state, update_state, candidate_state = kept.chunk(3, dim=-1)
        reset = torch.sigmoid(reset_in + reset_state)
        update = torch.sigmoid(update_in + update_state)
        candidate = torch.tanh(candidate_in + reset * candidate_state)
        following = candidate + update * (state - candidate)
        return self.head(following), following


def docstring_lm() -> Model:
    """`token` int64 [batch], `state` float32 [batch, 320] -> `logits` [batch, 256], `next_state` [batch, 320].

    Raises MissingExtraError.
    """
    module = ByteModel()
    load_checkpoint("docstring-lm", module)
    texts = sentences()
    return Model(
        name="docstring-lm",
        module=module,
        example_inputs=dict(run_through(module, texts[:1])[4]),
        output_names=("logits", "next_state"),
        task="text-generation",
        dynamic={"token": {0: "batch"}, "state": {0: "batch"}},
        calibration=run_through(module, texts[:6])[::2][:192],
        held_out=run_through(module, texts[6:9])[::2][:96],
        loop=Loop(
            carried=(Carried(output="next_state", input="state"),),
            feed=Choice(input="token", output="logits", start=END, stop=END, encoding="bytes"),
            max_steps=LONGEST,
        ),
        source=Source("sample", "docstring-lm", digest_module(module)),
    )


def run_through(module: nn.Module, texts: Sequence[str]) -> tuple[Sample, ...]:
    """The inputs of each step over `texts`, with the state that the model itself has reached."""
    samples: list[Sample] = []
    for text in texts:
        state = torch.zeros(1, WIDTH)
        for byte in bytes([END]) + text.encode():
            sample = {"token": torch.tensor([byte]), "state": state}
            samples.append(sample)
            with torch.no_grad():
                state = module(*sample.values())[1]
    return tuple(samples)
