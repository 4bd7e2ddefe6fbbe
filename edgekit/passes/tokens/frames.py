"""Which frames of a clip are worth encoding: the encoder sees few of them, and of each fewer tokens where PruneTokens
follows (`--compress-tokens frames@8 --prune-tokens merge@0.7`)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.passes.tokens.state import rows, unit
from edgekit.progress import Progress

# A frame's description: its colours in so many rows and columns, without their mean.
THUMBNAIL = 7
TAKEN = 4.0


class ClipEncoder(nn.Module):
    """One frame's encoder for clips: the mean of what it says of the frames. `frames` [N, C, H, W] -> [N, D]."""

    def __init__(self, frame_encoder: nn.Module) -> None:
        super().__init__()
        self.frame_encoder = frame_encoder

    def forward(self, clip: Tensor) -> Tensor:
        """[N, F, C, H, W] -> [N, D]."""
        return self.features(clip).mean(1)

    def features(self, clip: Tensor) -> Tensor:
        """[N, F, C, H, W] -> [N, F, D]."""
        batch, frames = clip.shape[:2]
        told: Tensor = self.frame_encoder(clip.flatten(0, 1))
        return told.reshape(batch, frames, told.shape[-1])


class SelectiveClipEncoder(ClipEncoder):
    """`count` frames are encoded, and each counts as often as frames of the clip are most like it."""

    def __init__(self, frame_encoder: nn.Module, count: int, uniform: float) -> None:
        super().__init__(frame_encoder)
        self.count, self.uniform = count, uniform

    def forward(self, clip: Tensor) -> Tensor:
        described = describe(clip)
        chosen = choose_frames(described, self.count, self.uniform)
        weight = shares(described, chosen)
        pixels = rows(clip.flatten(2), chosen).reshape(clip.shape[0], self.count, *clip.shape[2:])
        return (self.features(pixels) * weight.unsqueeze(2)).sum(1)


def describe(clip: Tensor) -> Tensor:
    """[N, F, C, H, W] -> [N, F, D] of length 1: thumbnails, far cheaper than the encoder's own features."""
    batch, frames, channels, height, width = clip.shape
    tall, wide = max(1, height // THUMBNAIL), max(1, width // THUMBNAIL)
    small = nn.functional.avg_pool2d(clip.flatten(0, 1), (tall, wide))
    flat = small.reshape(batch, frames, channels * small.shape[2] * small.shape[3])
    return unit(flat - flat.mean(2, keepdim=True))


def choose_frames(described: Tensor, count: int, uniform: float) -> Tensor:
    """`described` [N, F, D] of length 1 -> int64 [N, count], in the order of time: the share `uniform` evenly spread
    over the clip, then again and again the frame that speaks best for what nothing chosen is like yet.

    After D-CoDe (arXiv:2510.08818, dynamic compression: frames chosen for what they add, uniform ones beside them).
    """
    batch, frames, _ = described.shape
    similar = described @ described.transpose(1, 2)
    number = torch.arange(frames, device=described.device)
    even = round(uniform * count)
    spread = [round((place + 0.5) * frames / even - 0.5) for place in range(even)]
    taken = (number[:, None] == torch.tensor(spread, device=described.device)).to(described.dtype).sum(1)
    taken = taken.expand(batch, -1)
    closest = (similar - TAKEN * (1 - taken).unsqueeze(1)).max(2).values.clamp(min=-1.0)
    for _ in range(count - even):
        gain = (similar - closest.unsqueeze(2)).clamp(min=0.0).sum(1)
        best = (gain - TAKEN * frames * taken).argmax(1, keepdim=True)
        own = (number == best).to(described.dtype)
        taken = taken + own
        closest = torch.maximum(closest, (similar @ own.unsqueeze(2)).squeeze(2))
    # All taken frames in the order of time: the highest of taken x (frames - place).
    return (taken * (frames - number).to(described.dtype)).topk(count, dim=1).indices


def shares(described: Tensor, chosen: Tensor) -> Tensor:
    """`described` [N, F, D], `chosen` int64 [N, K] -> [N, K]: of the frames, which share is most like each; sums to
    1."""
    close = described @ rows(described, chosen).transpose(1, 2)
    own = (torch.arange(described.shape[1], device=described.device)[None, :, None] == chosen.unsqueeze(1)).to(
        close.dtype
    )
    nearest = (close + TAKEN * own).argmax(2)
    votes = (nearest.unsqueeze(2) == torch.arange(chosen.shape[1], device=described.device)).to(close.dtype)
    return votes.mean(1)


@dataclass(frozen=True)
class SelectFrames(Pass):
    """Of a ClipEncoder's clips `count` frames are encoded; `uniform`: which share of them is evenly spread.

    A function of the user's that returns `Model("clips", ClipEncoder(encoder), {"clip": clip}, ("logits",))` is a
    source for `edgekit export package.module:function --compress-tokens frames@8`.
    """

    count: int = 8
    uniform: float = 0.5

    def requires(self, model: Model) -> None:
        if type(model.module) is not ClipEncoder:
            raise SourceError(
                f"{model.name} is a {type(model.module).__name__}, allowed a ClipEncoder",
                hint="wrap the encoder of single frames: ClipEncoder(encoder)",
            )
        clip = next(iter(model.example_inputs.values()))
        if clip.dim() != 5:
            raise UsageError(f"a clip of {clip.dim()} dimensions, allowed [N, frames, C, H, W]")
        if not 1 <= self.count <= clip.shape[1]:
            raise UsageError(f"{self.count} frames to keep, allowed 1 to {clip.shape[1]}")
        if not 0 <= self.uniform <= 1:
            raise UsageError(f"a uniform share of {self.uniform:g}, allowed 0 to 1")
        if any(1 in dims for dims in model.dynamic.values()):
            raise UsageError("clips of any number of frames, allowed one", hint="leave the frames out of `dynamic`")

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        assert isinstance(model.module, ClipEncoder)
        encoder = copy.deepcopy(model.module.frame_encoder)
        frames = next(iter(model.example_inputs.values())).shape[1]
        module = SelectiveClipEncoder(encoder, self.count, self.uniform).eval()
        return model.evolve_quietly(module=module), f"{frames} frames to {self.count}"
