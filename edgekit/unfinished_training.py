"""The state of a training in a folder, from which an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekit.errors import DataError
from edgekit.model import Sample

STATE, FACTS = "distillation.safetensors", "distillation.json"


@dataclass
class TrainingRun:
    steps: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    loss: float = math.nan


def identify(name: str, origin: str, module: nn.Module, samples: Sequence[Sample], options: object) -> str:
    """Of what makes a run: options, shapes, from whom it learns, what it sees. Not of the weights that it starts with:
    they were computed, and another number of threads makes other last bits."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    first = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in samples[0].items()}
    facts = [name, origin, options, len(samples), first, shapes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingStore:
    """The state of a run in a folder; a new one is renamed into place before the old one goes."""

    folder: Path
    identity: str

    @property
    def exists(self) -> bool:
        return (self.folder / FACTS).exists()

    def save(self, run: TrainingRun, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"module/{key}": value.detach().clone() for key, value in module.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        name = f"{run.steps}-{STATE}"
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.folder / name)
        scratch = self.folder / f"{FACTS}.partial"
        facts = {"identity": self.identity, "state": name, **asdict(run)}
        scratch.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        scratch.replace(self.folder / FACTS)
        for old in self.folder.glob(f"*-{STATE}"):
            if old.name != name:
                old.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingRun:
        """Raises DataError for a state of another run, or one that does not read."""
        try:
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            identity, name = facts.pop("identity"), Path(facts.pop("state")).name
            if identity == self.identity:
                tensors = load_file(self.folder / name)
                state: dict[int, dict[str, Tensor]] = {}
                for key, value in tensors.items():
                    if key.startswith("optimizer/"):
                        _, index, entry = key.split("/")
                        state.setdefault(int(index), {})[entry] = value
                module.load_state_dict(
                    {key.removeprefix("module/"): value for key, value in tensors.items() if key.startswith("module/")}
                )
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
                return TrainingRun(**facts)
        except Exception as error:
            raise DataError(
                f"the unfinished recovery in {self.folder} does not read: {error}",
                hint="remove the folder to begin anew",
            ) from error
        raise DataError(
            f"{self.folder} holds an unfinished recovery of another model or with other options",
            hint="give the same options to go on, or remove the folder",
        )
