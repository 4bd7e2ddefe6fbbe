"""Two small classifiers of Fashion-MNIST (Xiao et al., arXiv:1708.07747, MIT), trained by samples/training.

Their checkpoints lie in edgekit/zoo/checkpoints: a safetensors file, and a JSON file with the accuracy on the 10,000
test images and the command that trained it. 256 of the dataset's images come with them to calibrate on and to check.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.bundle.manifest import Postprocess, Preprocess
from edgekit.digests import digest_module
from edgekit.errors import MissingExtraError
from edgekit.model import Model, Sample, Source

LABELS = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
MEAN, STD = 73.0, 90.0  # of the 60,000 training images' pixels (72.94, 90.02), rounded
PREPROCESS = Preprocess(mode="L", resize=28, crop=28, interpolation="bilinear", mean=(MEAN,), std=(STD,))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., arXiv:1801.04381, section 3.3): expand, depthwise, project linearly."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.shortcut = stride == 1 and channels_in == channels_out
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, image: Tensor) -> Tensor:
        changed: Tensor = self.layers(image)
        return image + changed if self.shortcut else changed


class FashionCnn(nn.Module):
    """About 64,000 parameters: stem to 14 x 14, five inverted residuals, one of them to 7 x 7."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU6(),
            InvertedResidual(24, 24, 1, 3),
            InvertedResidual(24, 32, 1, 3),
            InvertedResidual(32, 48, 2, 4),
            InvertedResidual(48, 48, 1, 3),
            InvertedResidual(48, 64, 1, 3),
            nn.Conv2d(64, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU6(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(128, len(LABELS))

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, 28, 28] -> [N, 10]."""
        pooled = self.pool(self.features(image)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class EncoderBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al., arXiv:2010.11929, equations 2 and 3)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, D] -> [N, T, D]."""
        tokens = tokens + self.dropout(self._attend(self.norm1(tokens)))
        mixed: Tensor = self.dropout(self.mlp(self.norm2(tokens)))
        return tokens + mixed

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        heads = functional.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.projection(heads.transpose(1, 2).reshape(batch, count, width))
        return merged


class FashionVit(nn.Module):
    """About 0.2 million parameters: 7 x 7 tokens and a class token, six blocks of width 64.

    Two convolutions of stride 2 make the tokens: in a short training they learn far more than one linear patch
    embedding does (Xiao et al., arXiv:2106.14881).
    """

    def __init__(self, width: int = 64, depth: int = 6, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, width, 3, stride=2, padding=1),
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 50, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 2, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, len(LABELS))
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """[N, 1, 28, 28] -> [N, 50, D], the class token first."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.positions

    def classify(self, tokens: Tensor) -> Tensor:
        """[N, 50, D] -> [N, 10]."""
        logits: Tensor = self.classifier(self.norm(tokens)[:, 0])
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, 28, 28] -> [N, 10]."""
        return self.classify(self.blocks(self.embed(image)))


def fashion_cnn() -> Model:
    """`image` float32 [batch, 1, 28, 28] -> `logits` [batch, 10]. Raises MissingExtraError."""
    return fashion_sample("fashion-cnn", FashionCnn())


def fashion_vit() -> Model:
    """`image` float32 [batch, 1, 28, 28] -> `logits` [batch, 10]. Raises MissingExtraError."""
    return fashion_sample("fashion-vit", FashionVit())


def normalize(pixels: Tensor) -> Tensor:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] as the nets want it."""
    return (pixels.float().unsqueeze(1) - MEAN) / STD


def load_checkpoint(name: str, module: nn.Module) -> nn.Module:
    """`module` with the weights of checkpoints/NAME.safetensors, in float32. Raises MissingExtraError."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("safetensors", "export", f"the sample {name}") from None

    with as_file(files("edgekit.zoo").joinpath(f"checkpoints/{name}.safetensors")) as path:
        weights = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    module.load_state_dict(weights)
    return module.eval()


def fashion_sample(name: str, module: nn.Module) -> Model:
    """A classifier of the ten classes with the weights of its checkpoint. Raises MissingExtraError."""
    load_checkpoint(name, module)
    calibration, held_out, labels = _images()
    return Model(
        name=name,
        module=module,
        example_inputs=dict(calibration[0]),
        output_names=("logits",),
        task="image-classification",
        dynamic={"image": {0: "batch"}},
        calibration=calibration,
        held_out=held_out,
        labels=labels,
        preprocess=PREPROCESS,
        postprocess=Postprocess(kind="classification", output="logits", labels=LABELS),
        source=Source("sample", name, digest_module(module)),
    )


def _images() -> tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[int, ...]]:
    """128 training images, 128 test images, and the classes of the latter."""
    with as_file(files("edgekit.zoo").joinpath("data/fashion_mnist.npz")) as path, np.load(path) as arrays:
        train, test = torch.from_numpy(arrays["train"]), torch.from_numpy(arrays["test"])
        labels = tuple(int(label) for label in arrays["test_labels"])
    calibration, held_out = (tuple({"image": image[None]} for image in normalize(pixels)) for pixels in (train, test))
    return calibration, held_out, labels
