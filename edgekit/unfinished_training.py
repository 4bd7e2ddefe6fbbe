"""The state of a training in a folder, from which an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekit.errors import DataError
from edgekit.model import Sample

STATE, FACTS = "training.safetensors", "training.json"


@dataclass
class TrainingRun:
    steps: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    loss: float = math.nan


def identify(name: str, origin: str, module: nn.Module, samples: Sequence[Sample], options: object) -> str:
    """Of what makes a run: options, shapes, from whom it learns, what it sees. Not of the weights that it starts with:
    they were computed, and another number of threads makes other last bits."""
    first = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in samples[0].items()}
    return digest_facts([name, origin, options, len(samples), first], module)


def digest_facts(facts: Sequence[object], module: nn.Module) -> str:
    """Of `facts`, in JSON's types, and of the shapes of what is trained."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    return hashlib.sha256(json.dumps([*facts, shapes], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingStore:
    """The state of a run in a folder; a new one is renamed into place before the old one goes. `kind`: what a user
    calls it, as recovery."""

    folder: Path
    identity: str
    kind: str = "training"

    @property
    def exists(self) -> bool:
        return (self.folder / FACTS).exists()

    def save(
        self,
        step: int,
        facts: Mapping[str, Any],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`facts` in JSON's types; `best`: weights to keep beside those of `module`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"module/{key}": value.detach().clone() for key, value in module.state_dict().items()}
        tensors |= {f"best/{key}": value for key, value in (best or {}).items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        name = f"{step}-{STATE}"
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.folder / name)
        scratch = self.folder / f"{FACTS}.partial"
        text = json.dumps({"identity": self.identity, "state": name, **facts}, indent=2)
        scratch.write_text(f"{text}\n", encoding="utf-8")
        scratch.replace(self.folder / FACTS)
        for old in self.folder.glob(f"*-{STATE}"):
            if old.name != name:
                old.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The facts and the best weights. Raises DataError for a state of another run, or one that does not read."""
        try:
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            identity, name = facts.pop("identity"), Path(facts.pop("state")).name
            if identity == self.identity:
                parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
                for key, value in load_file(self.folder / name).items():
                    part, _, rest = key.partition("/")
                    parts[part][rest] = value
                module.load_state_dict(parts["module"])
                state: dict[int, dict[str, Tensor]] = {}
                for key, value in parts["optimizer"].items():
                    index, _, entry = key.partition("/")
                    state.setdefault(int(index), {})[entry] = value
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
                return facts, parts["best"]
        except Exception as error:
            raise DataError(
                f"the unfinished {self.kind} in {self.folder} does not read: {error}",
                hint="remove the folder to begin anew",
            ) from error
        raise DataError(
            f"{self.folder} holds an unfinished {self.kind} of another model or with other options",
            hint="give the same options to go on, or remove the folder",
        )
