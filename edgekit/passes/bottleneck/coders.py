"""All that a learned bottleneck trains, as one module, and the checkpoints that hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekit.errors import DataError
from edgekit.model import Model
from edgekit.passes.bottleneck.axes import Axes
from edgekit.passes.bottleneck.coding import coders
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.rate import LaplaceRate

PREFIX = "bottleneck-"

Make = Callable[[Mapping[str, Tensor], Model, Mapping[str, Any]], "Coders"]


class Coders(nn.Module):
    """`encoder` and `decoder` at the cut, the tail with its deltas, and the density that the rate is measured by."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, tail: AdaptedTail, rate: LaplaceRate) -> None:
        super().__init__()
        self.encoder, self.decoder, self.tail, self.rate = encoder, decoder, tail, rate

    def answer(self, components: Tensor) -> list[Tensor]:
        """The tail's outputs for decoded components."""
        outputs: list[Tensor] = self.tail(*self.decoder(components))
        return outputs

    def round_to_half(self) -> None:
        """Every weight to the float16 nearest to it, so that a stored checkpoint is the trained one exactly."""
        with torch.no_grad():
            for parameter in (*self.encoder.parameters(), *self.decoder.parameters(), *self.tail.parameters()):
                parameter.copy_(parameter.half().float())


@dataclass(frozen=True)
class Trained:
    """Trained coders with their ladder: `steps` finest first and the codec's `tables` for them."""

    coders: Coders
    steps: tuple[float, ...]
    tables: bytes
    facts: Mapping[str, Any]


def identity(head: Model, tail: Model) -> dict[str, Any]:
    """What a checkpoint belongs to: the weights of the source, and the values that cross."""
    return {
        "source": head.source.digest,
        "crossing": {name: list(value.shape[1:]) for name, value in tail.example_inputs.items()},
    }


def pretrained(head: Model, tail: Model, folder: Path | None = None, prefix: str = PREFIX) -> Path | None:
    """The checkpoint (its JSON file) that was trained for this very cut of this very model; None where there is none.

    `folder`: where to look, the package's own checkpoints by default. `prefix`: of the file's name, a kind's own.
    """
    root = folder or Path(str(files("edgekit.zoo").joinpath("checkpoints")))
    wanted = identity(head, tail)
    if not wanted["source"]:
        return None
    for path in sorted(root.glob(f"{prefix}*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if all(facts.get(key) == value for key, value in wanted.items()) and path.with_suffix(".safetensors").exists():
            return path
    return None


def save_trained(path: Path, trained: Trained, head: Model, tail: Model, facts: Mapping[str, Any]) -> Path:
    """Writes `path` (.json) and a .safetensors beside it, weights in float16."""
    tensors = {
        f"{part}.{name}": value.half().contiguous()
        for part in ("encoder", "decoder", "tail")
        for name, value in getattr(trained.coders, part).state_dict().items()
    }
    tensors["tables"] = torch.frombuffer(bytearray(trained.tables), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".safetensors"))
    content = {**identity(head, tail), "steps": list(trained.steps), **trained.facts, **facts}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_trained(path: Path, head: Model, tail: Model, make: Make | None = None) -> Trained:
    """`make`: coders of the shapes in a state; None: those of a learned transform. Raises DataError for files that do
    not read, or do not fit this head and tail."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if any(facts[key] != value for key, value in identity(head, tail).items()):
            raise DataError(f"{path.name} was trained for another model or cut", hint="train one for this cut")
        tensors = load_file(path.with_suffix(".safetensors"))
        tables = bytes(tensors.pop("tables").numpy())
        state = {name: value.float() for name, value in tensors.items()}
        module = (make or _empty)(state, tail, facts)
        missing, unexpected = module.load_state_dict(state, strict=False)
        if unexpected or any(not name.startswith("rate.") for name in missing):
            raise DataError(f"{path.name} lacks {missing or unexpected}", hint="train it again")
        return Trained(module.eval(), tuple(facts["steps"]), tables, facts)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the checkpoint {path} does not read: {error}", hint="train it again") from error


def _empty(state: Mapping[str, Tensor], tail: Model, facts: Mapping[str, Any]) -> Coders:
    """Coders of the shapes in `state`."""
    crossing = Crossing.of(tail)
    axes = {}
    for mode in crossing.modes:
        forward = state[f"encoder.linear.matrices.{mode}"]
        backward = state[f"decoder.linear.matrices.{mode}"]
        axes[mode] = Axes(forward.flatten(1), backward.flatten(1), torch.ones(len(forward)))
    mean = state["decoder.linear.bias"][0]
    encoder, decoder = coders(axes, mean, crossing.channels, int(facts["hidden"]))
    adapted = AdaptedTail(tail.graph, int(facts["adapter_rank"]))
    return Coders(encoder, decoder, adapted, LaplaceRate(torch.ones_like(state["encoder.linear.bias"])))
