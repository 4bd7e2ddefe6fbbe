"""A module in hand becomes a Model: inputs named after forward's parameters, outputs after the keys it returns."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.digests import digest_module
from edgekit.errors import SourceError
from edgekit.model import Model, Sample, Source, flatten_outputs, forward_arguments


def from_module(
    module: nn.Module, example_inputs: Any, *, name: str | None = None, source: Source | None = None
) -> Model:
    """Runs `module` once, in eval mode, to name its outputs. Raises SourceError where that fails."""
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"got a {type(module).__name__}, allowed a torch.nn.Module",
            hint="give a module, or a callable that returns one (or module and example inputs)",
        )
    inputs = name_inputs(module, example_inputs)
    return Model(
        name=name or slug(type(module).__name__),
        module=module,
        example_inputs=inputs,
        output_names=name_outputs(run_once(module, inputs)),
        source=source or Source("module", type(module).__name__, digest_module(module)),
    )


def name_inputs(module: nn.Module, example_inputs: Any) -> Sample:
    """A tensor, tuple or dict as a Sample in the order of forward. Raises SourceError."""
    if example_inputs is None or (isinstance(example_inputs, tuple | list | dict) and not example_inputs):
        raise SourceError(
            "no example inputs",
            hint="return (module, example_inputs) from the callable, such as (module, torch.rand(1, 3, 224, 224)); "
            "in Python pass example_inputs: a tensor, tuple or dict",
        )
    parameters = inspect.signature(module.forward).parameters
    named = [
        key for key, value in parameters.items() if value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY)
    ]
    if isinstance(example_inputs, Mapping):
        takes_any = any(value.kind is value.VAR_KEYWORD for value in parameters.values())
        for key in example_inputs:
            if key not in named and not takes_any:
                near = difflib.get_close_matches(str(key), named, n=1)
                raise SourceError(
                    f"forward has no parameter {key!r}",
                    hint=f"did you mean {near[0]!r}?" if near else f"its parameters: {', '.join(named)}",
                )
        order = [key for key in named if key in example_inputs] + [key for key in example_inputs if key not in named]
        return {key: as_tensor(example_inputs[key], str(key)) for key in order}
    values = list(example_inputs) if isinstance(example_inputs, tuple | list) else [example_inputs]
    spare = any(value.kind is value.VAR_POSITIONAL for value in parameters.values())
    positional = [key for key in parameters if parameters[key].kind in (0, 1)]
    if len(values) > len(positional) and not spare:
        raise SourceError(
            f"{len(values)} example inputs, and forward takes {len(positional)}: {', '.join(positional) or 'none'}",
            hint="give one tensor per parameter, in their order, or a dict by name",
        )
    names = positional[: len(values)] + [f"input_{index}" for index in range(len(positional), len(values))]
    return {key: as_tensor(value, key) for key, value in zip(names, values, strict=True)}


def as_tensor(value: Any, name: str) -> Tensor:
    """Raises SourceError for anything but a tensor or a numpy array."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise SourceError(
            f"example input {name!r} is a {type(value).__name__}, allowed a torch.Tensor",
            hint="wrap the module in one whose forward takes tensors only",
        )
    return value.detach()


def run_once(module: nn.Module, inputs: Sample) -> Any:
    """What `module` in eval mode returns for `inputs`; its training flags are put back after it."""
    training = [part for part in module.modules() if part.training]
    args, kwargs = forward_arguments(module, inputs)
    module.eval()
    try:
        with torch.no_grad():
            return module(*args, **kwargs)
    except Exception as error:  # the user's code may raise anything
        raise SourceError(
            f"the module fails on its example inputs: {type(error).__name__}: {error}",
            hint="call module.eval()(*example_inputs) alone to see where",
        ) from error
    finally:
        for part in training:
            part.training = True


def name_outputs(result: Any) -> tuple[str, ...]:
    """Keys of a mapping; `output`, or `output_0` ... of anything else. Raises SourceError where no tensor comes."""
    tensors = flatten_outputs(result)
    if not tensors:
        raise SourceError(
            f"the module returns a {type(result).__name__} without tensors", hint="return tensors from forward"
        )
    if isinstance(result, Mapping):
        keys = [str(key) for key, value in result.items() if isinstance(value, Tensor)]
        if len(keys) == len(tensors):
            return tuple(keys)
    return ("output",) if len(tensors) == 1 else tuple(f"output_{index}" for index in range(len(tensors)))


def slug(text: str) -> str:
    """A name for files: MobileNetV2 -> mobilenetv2, my_package.build -> my-package-build."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
