"""The manifest: what a bundle says of itself. Everything here is data; nothing names code.

`Manifest` is deterministic: the same model, data, recipe and library versions give the same bytes. What was measured
(seconds, latency, quality on this machine) lives in `report.json` beside it.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.devices.segment import Segment
from edgekit.tensors import TensorSpec

SCHEMA_VERSION = 1

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Unknown keys are errors; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(Strict):
    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorEntry:
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.shape)

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


class Preprocess(Strict):
    """Image file -> input tensor: decode to RGB or grey, resize the shorter side, centre crop, (x - mean) / std.

    `mean` and `std` are in the units of 0..255 pixels. `layout` is the tensor's.
    """

    kind: Literal["image"] = "image"
    mode: Literal["RGB", "L"] = "RGB"
    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @model_validator(mode="after")
    def _check(self) -> Preprocess:
        channels = 3 if self.mode == "RGB" else 1
        if not 1 <= self.crop <= self.resize <= 16384:
            raise ValueError(f"resize {self.resize} and crop {self.crop}, allowed 1 <= crop <= resize <= 16384")
        if len(self.mean) != channels or len(self.std) != channels or not all(std > 0 for std in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}, allowed {channels} each, std above zero")
        return self


class TextPreprocess(Strict):
    """Text -> token ids through the tokenizer file in the bundle (Hugging Face tokenizers, JSON)."""

    kind: Literal["text"] = "text"
    tokenizer: FileName = "tokenizer.json"
    max_length: int


class Postprocess(Strict):
    """Which output is read as what. `labels` names the classes of a classification, in order."""

    kind: Literal["classification", "embedding"]
    output: str
    labels: tuple[str, ...] = ()


class PartFile(Strict):
    """One file below `parts/`."""

    file: FileName
    size_bytes: int = Field(ge=0)
    sha256: Digest


class Part(PartFile):
    """An artifact: `format` names the session that runs it, `precision` the quantizer that made it."""

    name: str
    format: str
    tier: Literal["device", "edge", "cloud"] = "device"
    precision: str
    companions: tuple[PartFile, ...] = ()
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    segments: tuple[Segment, ...] = ()
    peak_activation_bytes: int = 0
    notes: tuple[str, ...] = ()


class Variant(Strict):
    """A way of running the bundle: the parts that it takes, in order. The first variant is the default."""

    name: str
    parts: tuple[str, ...]


class HistoryLine(Strict):
    name: str
    detail: str
    size_bytes: int


class FallbackLine(Strict):
    layer: str
    precision: str
    why: str


class Grid(Strict):
    """A scale of the quantized model: `scale` and `zero_point` are the extremes over channels where it has several."""

    name: str
    kind: Literal["weight", "activation"]
    bits: int
    channels: int
    scale_min: float
    scale_max: float
    zero_point: int


class Provenance(Strict):
    """`versions`: of each package that had a hand in it. `recipe`: the user's, as resolved."""

    edgekit: str
    versions: dict[str, str]
    source_kind: str
    source: str
    source_sha256: str
    recipe: dict[str, str | int | float | bool | None]


class Manifest(Strict):
    schema_version: Literal[1] = 1
    name: str
    task: str
    device: str
    parts: tuple[Part, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)
    preprocess: Preprocess | TextPreprocess | None = Field(default=None, discriminator="kind")
    postprocess: Postprocess | None = None
    assets: tuple[PartFile, ...] = ()
    fallbacks: tuple[FallbackLine, ...] = ()
    grids: tuple[Grid, ...] = ()
    history: tuple[HistoryLine, ...] = ()
    provenance: Provenance

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        parts, variants = [part.name for part in self.parts], [variant.name for variant in self.variants]
        for names in (parts, variants):
            if len(set(names)) != len(names):
                raise ValueError(f"names repeat: {names}")
        for variant in self.variants:
            if not variant.parts or not set(variant.parts) <= set(parts):
                raise ValueError(
                    f"variant {variant.name!r} takes {list(variant.parts)}, allowed one or more of {parts}"
                )
        if isinstance(self.preprocess, TextPreprocess):
            assets = [file.file for file in self.assets]
            if self.preprocess.tokenizer not in assets:
                raise ValueError(f"the tokenizer {self.preprocess.tokenizer!r} is not among the assets {assets}")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, two spaces, UTF-8. The sha256 of these bytes is the bundle's digest."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"

    def part(self, name: str | None = None) -> Part:
        """The part of that name; without one, the first part of the default variant. KeyError for an unknown one."""
        wanted = name or self.variants[0].parts[0]
        return {part.name: part for part in self.parts}[wanted]
