"""The architectures of the coverage matrix (coverage_models.toml) as Models: random weights, no downloads.

Each is structurally what its paper describes (the real classes, every kind of block at least once) and small enough
to be exported in seconds. A net as initialised for training is no fair test of quantization: signals die out, and
the running statistics of batch norms are those of no data. So weights are drawn to keep the variance, and the
statistics are filled in.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.model import Model, Sample, Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).with_name("coverage_models.toml")
CALIBRATION_SAMPLES = 8
HELD_OUT_SAMPLES = 4
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Input:
    """`vocabulary` draws token ids below it, `ones` is an attention mask, four dimensions are a picture."""

    name: str
    shape: tuple[int, ...]
    vocabulary: int | None = None
    ones: bool = False

    def draw(self, generator: torch.Generator) -> Tensor:
        if self.ones:
            return torch.ones(self.shape, dtype=torch.int64)
        if self.vocabulary is not None:
            return torch.randint(3, self.vocabulary, self.shape, generator=generator)
        noise = torch.randn(self.shape, generator=generator)
        return noise if len(self.shape) != 4 else 0.3 * noise + self._blotches(generator)

    def _blotches(self, generator: torch.Generator) -> Tensor:
        """[1, C, H, W] of large patches in colours of each picture's own. Deep down all pictures of white noise look
        the same, and batch norms then blow up what is left: rounding errors."""
        batch, channels, height, width = self.shape
        coarse = torch.randn(batch, channels, 4, 4, generator=generator)
        colour = torch.randn(batch, channels, 1, 1, generator=generator)
        return nn.functional.interpolate(coarse + colour, size=(height, width), mode="bilinear")


@dataclass(frozen=True)
class Architecture:
    """One row of the table; `build` makes the Model."""

    name: str
    family: str
    config: str
    model: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    options: dict[str, Any]
    part: str = ""

    def build(self, seed: int = 0) -> Model:
        """The Model with calibration and held-out samples; the same seed gives the same weights and samples."""
        import transformers

        torch.manual_seed(seed)
        inner = getattr(transformers, self.model)(_configuration(self.config, self.options)).eval()
        _mask_without_vmap(inner)
        keep_variance(inner)
        module = Plain(inner.get_submodule(self.part), tuple(one.name for one in self.inputs), self.outputs)
        generator = torch.Generator().manual_seed(seed)
        count = 1 + CALIBRATION_SAMPLES + HELD_OUT_SAMPLES
        example, *samples = ({one.name: one.draw(generator) for one in self.inputs} for _ in range(count))
        settle_batch_norm(module, samples[:CALIBRATION_SAMPLES])
        return Model(
            name=self.name,
            module=module,
            example_inputs=example,
            output_names=self.outputs,
            calibration=tuple(samples[:CALIBRATION_SAMPLES]),
            held_out=tuple(samples[CALIBRATION_SAMPLES:]),
            source=Source("module", f"transformers.{self.model}", ""),
        )


class Plain(nn.Module):
    """Tensors in by position, a dict of the wanted output tensors out."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return {name: getattr(result, name) for name in self.outputs}


def keep_variance(module: nn.Module) -> None:
    """Draws the weights of linear and convolution layers with variance 1 / fan-in, in place of a fixed 0.02^2.

    Batch norms get scale 1 and shift 1. At shift 0 a deep net of random weights is chaotic, it loses 40 dB of an
    input's precision (Yang et al. 2019, "A mean field theory of batch normalization", arXiv:1902.08129); with
    activations mostly above the kink it loses some 10, as trained nets do.
    """
    for part in module.modules():
        if isinstance(part, WEIGHTED):
            nn.init.normal_(part.weight, std=math.prod(part.weight.shape[1:]) ** -0.5)
        elif isinstance(part, BATCH_NORMS):
            nn.init.ones_(part.weight)
            nn.init.ones_(part.bias)


def settle_batch_norm(module: nn.Module, samples: list[Sample]) -> None:
    """Fills the running statistics with those of `samples` as one batch; nothing else changes."""
    norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    # One batch: a single sample leaves one value per channel where a net has pooled down to 1 x 1.
    with torch.no_grad():
        module(*(torch.cat([sample[name] for sample in samples]) for name in samples[0]))
    module.eval()


def _mask_without_vmap(model: Any) -> None:
    """transformers builds attention masks with vmap, which torch.export cannot trace; it has a form without."""
    from transformers.integrations.executorch import sdpa_mask_without_vmap
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa_without_vmap", sdpa_mask_without_vmap)
    ALL_ATTENTION_FUNCTIONS.register("sdpa_without_vmap", ALL_ATTENTION_FUNCTIONS["sdpa"])
    if model.config.model_type in ("gpt2", "gpt_neox", "llama", "qwen2"):
        model.config._attn_implementation = "sdpa_without_vmap"


def _configuration(name: str, options: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, name)(**{key: _value(value) for key, value in options.items()})


def _value(value: Any) -> Any:
    """A nested table with a `config` of its own is a configuration."""
    if isinstance(value, dict) and "config" in value:
        rest = {key: one for key, one in value.items() if key not in ("config", "base")}
        return _configuration(value["config"], _bases().get(value.get("base", ""), {}) | rest)
    return value


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _bases() -> dict[str, dict[str, Any]]:
    bases: dict[str, dict[str, Any]] = _table()["bases"]
    return bases


def _architecture(name: str, row: dict[str, Any]) -> Architecture:
    options = _bases().get(row.get("base", ""), {}) | row.get("options", {})
    return Architecture(
        name=name,
        family=row["family"],
        config=row["config"],
        model=row["model"],
        inputs=tuple(Input(**one | {"shape": tuple(one["shape"])}) for one in _table()["inputs"][row["input"]]),
        outputs=tuple(row["outputs"]),
        options=options | dict.fromkeys(row.get("unset", ())),
        part=row.get("part", ""),
    )


ARCHITECTURES: dict[str, Architecture] = {
    name: _architecture(name, row) for name, row in _table()["architectures"].items()
}
