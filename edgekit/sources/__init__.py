"""Where a Model comes from: a sample's name, package.module:callable, a .pt2 or .onnx file, a local Hugging Face
directory, or a module in hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.bundle.manifest import Preprocess
from edgekit.data import HOLD_OUT_EVERY, Data, Shape, guess_preprocess, load_data
from edgekit.errors import NumericsError, SourceError, UnknownNameError
from edgekit.model import Model
from edgekit.registry import SAMPLES
from edgekit.runtimes.preprocess import image_files
from edgekit.sources.callables import from_callable
from edgekit.sources.modules import as_tensor, from_module

__all__ = ["resolve"]

# Files that hold weights and no network.
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def resolve(
    reference: str | Path | nn.Module | Model,
    example_inputs: Any = None,
    calibration: str | Path | Iterable[Any] | None = None,
    *,
    calibration_samples: int = 128,
    name: str | None = None,
) -> Model:
    """The Model that `reference` names, with its calibration data; `name` renames it.

    `example_inputs`: a tensor, a tuple in the order of forward, or a dict by name; needed for a module in hand.
    `calibration` replaces what a sample brings (see `edgekit.data.load_data`). Raises UnknownNameError, SourceError,
    NumericsError for NaN or infinity in the weights, DataError, MissingExtraError.
    """
    model = _load(reference, example_inputs)
    _check_weights(model.module)
    if name is not None:
        model = replace(model, name=name)
    if calibration is not None:
        model = _with_data(model, calibration, calibration_samples)
    elif len(model.calibration) > calibration_samples:
        step = len(model.calibration) / calibration_samples
        kept = tuple(model.calibration[int(index * step)] for index in range(calibration_samples))
        model = replace(model, calibration=kept)
    return model


def _load(reference: str | Path | nn.Module | Model, example_inputs: Any) -> Model:
    if isinstance(reference, Model):
        return reference
    if isinstance(reference, nn.Module):
        return from_module(reference, example_inputs)
    if not isinstance(reference, str | Path):
        raise SourceError(
            f"got a {type(reference).__name__}, allowed a torch.nn.Module",
            hint="give a module, a sample's name, package.module:callable, a .pt2 or .onnx file or a directory",
        )
    text = str(reference)
    if isinstance(reference, str) and text in SAMPLES:
        sample: Model = SAMPLES.load(text)()
        return sample
    path = Path(text)
    if path.exists():
        return _from_path(path, example_inputs)
    if ":" in text and not text.startswith((".", "/")):
        return from_callable(text, example_inputs)
    if path.suffix or "/" in text or "\\" in text:
        raise SourceError(f"there is nothing at {text}", hint="check the path; a callable is package.module:callable")
    raise UnknownNameError("sample", text, SAMPLES)


def _from_path(path: Path, example_inputs: Any) -> Model:
    if path.is_dir():
        from edgekit.sources.huggingface import from_directory

        return from_directory(path)
    if path.suffix == ".pt2":
        from edgekit.sources.exported import from_pt2

        return from_pt2(path)
    if path.suffix == ".onnx":
        if example_inputs is not None and not isinstance(example_inputs, Mapping):
            raise SourceError("an ONNX file takes example inputs by name", hint="pass a dict of tensors")
        named = None
        if example_inputs is not None:
            named = {key: as_tensor(value, key) for key, value in example_inputs.items()}
        # The ONNX loader belongs to the exporters, a floor above.
        model: Model = import_module("edgekit.exporters.onnx_source").load_onnx_model(path, named)
        return model
    if path.suffix in WEIGHT_SUFFIXES:
        raise SourceError(
            f"{path.name} holds weights without the network they belong to",
            hint="give package.module:callable, a function that builds the module and loads them",
        )
    raise SourceError(f"{path} is no model", hint="allowed: a .pt2 or .onnx file, or a Hugging Face directory")


def _check_weights(module: nn.Module) -> None:
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            # Masks keep minus infinity in buffers on purpose; NaN is never meant.
            if name in dict(module.named_buffers()) and not torch.isnan(value).any():
                continue
            raise NumericsError(
                f"the weight {name!r} holds NaN or infinity", hint="the checkpoint is damaged, or training diverged"
            )


def _with_data(model: Model, calibration: str | Path | Iterable[Any], limit: int) -> Model:
    shape = Shape(
        model.example_inputs,
        model.dynamic,
        model.preprocess,
        model.tokenizer,
        model.postprocess.labels if model.postprocess else (),
    )
    data: Data = load_data(calibration, shape, calibration_limit=limit)
    preprocess, notes = model.preprocess, model.notes
    if preprocess is None and isinstance(calibration, str | Path) and model.tokenizer is None:
        preprocess = guess_preprocess(model.example_inputs)
        if preprocess is not None:
            mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
            notes = (*notes, f"preprocessing was guessed: (pixels - [{mean}]) / [{std}]; return a Model to set it")
    return replace(
        model,
        calibration=data.calibration,
        held_out=data.held_out,
        labels=data.labels,
        preprocess=preprocess,
        previews=_previews(calibration) if isinstance(preprocess, Preprocess) else (),
        notes=notes,
    )


def _previews(calibration: str | Path | Iterable[Any]) -> tuple[Path, ...]:
    """A few of a folder's images that are held out from calibration."""
    if not isinstance(calibration, str | Path) or not Path(calibration).is_dir():
        return ()
    files = image_files(calibration)
    return tuple(files[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY][:4])
