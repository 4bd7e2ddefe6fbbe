"""Images as cameras deliver them: [N, H, W, C] at the model's border, whatever the layout inside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.bundle.manifest import Preprocess
from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.progress import Progress

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True)
class TakeChannelsLast(Pass):
    """Every four-dimensional floating-point input becomes [N, H, W, C]; samples and preprocessing follow."""

    def requires(self, model: Model) -> None:
        if model.onnx_path is not None:
            raise UsageError(
                "channels_last needs a torch module, got a trained .onnx file", hint="leave --channels-last out"
            )
        if not _images(model):
            raise UsageError(f"{model.name} has no image input to take channels last", hint="leave it out")

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        images = _images(model)
        graph = model.copy_graph()
        placeholders = graph.graph.find_nodes(op="placeholder")
        for name, node in zip(model.example_inputs, placeholders, strict=True):
            if name not in images:
                continue
            with graph.graph.inserting_after(node):
                turned = graph.graph.call_function(torch.ops.aten.permute.default, (node, list(TO_FIRST)))
            turned.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(turned, delete_user_cb=lambda user, turned=turned: user is not turned)
            node.meta["val"] = node.meta["val"].permute(TO_LAST)
        graph.recompile()
        changed = replace(
            model,
            module=graph,
            example_inputs=_turn(model.example_inputs, images),
            calibration=tuple(_turn(sample, images) for sample in model.calibration),
            held_out=tuple(_turn(sample, images) for sample in model.held_out),
            dynamic={
                name: {TO_LAST.index(dim): symbol for dim, symbol in dims.items()} if name in images else dims
                for name, dims in model.dynamic.items()
            },
            preprocess=model.preprocess.model_copy(update={"layout": "NHWC"})
            if isinstance(model.preprocess, Preprocess)
            else model.preprocess,
        )
        return changed, ", ".join(sorted(images))


def _images(model: Model) -> set[str]:
    return {name for name, value in model.example_inputs.items() if value.dim() == 4 and value.is_floating_point()}


def _turn(sample: Sample, images: set[str]) -> Sample:
    return {name: _last(value) if name in images else value for name, value in sample.items()}


def _last(value: Tensor) -> Tensor:
    return value.permute(TO_LAST).contiguous()
