"""The manifest: what a bundle says of itself. Everything here is data; nothing names code.

`Manifest` is deterministic: the same model, data, recipe and library versions give the same bytes. What was measured
(seconds, latency, quality on this machine) lives in `report.json` beside it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekit.bundle.golden import Golden, Pixels
from edgekit.bundle.loop import Loop
from edgekit.bundle.strict import Strict
from edgekit.devices.segment import Segment
from edgekit.tensors import TensorSpec

SCHEMA_VERSION = 1
Tier = Literal["device", "edge", "cloud"]
TIERS: tuple[Tier, ...] = ("device", "edge", "cloud")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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

    def pixels(self) -> Pixels:
        return Pixels(self.mean, self.std, -3 if self.layout == "NCHW" else -1)

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
    """An artifact: `format` names the session that runs it, `precision` the quantizer that made it. `loop`: of a part
    that is one step of an iteration."""

    name: str
    format: str
    tier: Tier = "device"
    precision: str
    companions: tuple[PartFile, ...] = ()
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    segments: tuple[Segment, ...] = ()
    peak_activation_bytes: int = 0
    notes: tuple[str, ...] = ()
    loop: Loop | None = None

    @model_validator(mode="after")
    def _check_loop(self) -> Part:
        if self.loop is not None:
            self.loop.check_tensors(self.name, self.inputs, self.outputs)
        return self


class Rate(Strict):
    """One rung of a codec's ladder: what a frame weighs on the wire (header included) and what it costs.

    `bytes_mean`, `bytes_p95`: over the held-out samples, one sample a frame. `drop`: points lost by the variant that
    uses the codec, against the float model; `agreement`: its top-1 agreement where the model is a classifier.
    """

    bytes_mean: float = Field(ge=0)
    bytes_p95: float = Field(ge=0)
    drop: float
    agreement: float | None = None


class Codec(Strict):
    """How features cross a link. `kind` names the codec class (registry CODECS), `tables` its asset.

    `features`: what is coded, in order, the batch first. `rates`: finest first; a frame names its rung by index.
    """

    name: str
    kind: str
    features: tuple[TensorEntry, ...] = Field(min_length=1)
    tables: FileName | None = None
    rates: tuple[Rate, ...] = Field(min_length=1)


class ExitPoint(Strict):
    """A confidence threshold of an exit, and what came of it on the held-out samples.

    `answered`: the share that left here; `drop`: points that the variant loses at this threshold.
    """

    threshold: float
    answered: float = Field(ge=0, le=1)
    drop: float


class Exit(Strict):
    """An early answer: `part` reads what the variant's first part gives and has the model's outputs.

    Confidence is the largest softmax(logits / temperature); at `threshold` and above the answer stands.
    """

    part: str
    temperature: float = Field(gt=0)
    threshold: float
    curve: tuple[ExitPoint, ...] = ()


class Variant(Strict):
    """A way of running the bundle: the parts that it takes, in order. The first variant is the default.

    `codecs`: one for each part that is not on the device, in order: it carries what goes into that part. `drop`:
    points lost against the float model where nothing is coded (the codecs' rates state theirs). `exits`: of a variant
    that runs on the device alone, one behind each part but the last; `shares`: of a window of requests, how much may go
    on past each of them at most, never more than past the one before.
    """

    name: str
    parts: tuple[str, ...]
    codecs: tuple[str, ...] = ()
    exit: Exit | None = None
    drop: float = 0.0
    exits: tuple[Exit, ...] = ()
    shares: tuple[float, ...] = ()


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
    """`device` names the profile that parts of the tier device run on; `tiers` those of the servers. `golden`: by which
    a part is known to run right, of each that could be run where it was built."""

    schema_version: Literal[1] = 1
    name: str
    task: str
    device: str
    tiers: dict[Literal["edge", "cloud"], str] = Field(default_factory=dict)
    parts: tuple[Part, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)
    codecs: tuple[Codec, ...] = ()
    preprocess: Preprocess | TextPreprocess | None = Field(default=None, discriminator="kind")
    postprocess: Postprocess | None = None
    assets: tuple[PartFile, ...] = ()
    golden: tuple[Golden, ...] = ()
    fallbacks: tuple[FallbackLine, ...] = ()
    grids: tuple[Grid, ...] = ()
    history: tuple[HistoryLine, ...] = ()
    provenance: Provenance

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        parts, variants = [part.name for part in self.parts], [variant.name for variant in self.variants]
        codecs = [codec.name for codec in self.codecs]
        for names in (parts, variants, codecs):
            if len(set(names)) != len(names):
                raise ValueError(f"names repeat: {names}")
        for variant in self.variants:
            if not variant.parts or not set(variant.parts) <= set(parts):
                raise ValueError(
                    f"variant {variant.name!r} takes {list(variant.parts)}, allowed one or more of {parts}"
                )
            self._check_links(variant)
        assets = [file.file for file in self.assets]
        for codec in self.codecs:
            if codec.tables is not None and codec.tables not in assets:
                raise ValueError(f"the tables {codec.tables!r} of codec {codec.name!r} are not among the assets")
        for golden in self.golden:
            if golden.part not in parts or golden.file not in assets:
                raise ValueError(f"golden answers {golden.file!r} of the part {golden.part!r}, which are not here")
        if isinstance(self.preprocess, TextPreprocess) and self.preprocess.tokenizer not in assets:
            raise ValueError(f"the tokenizer {self.preprocess.tokenizer!r} is not among the assets {assets}")
        return self

    def _check_links(self, variant: Variant) -> None:
        tiers = [self.part(name).tier for name in variant.parts]
        if tiers != sorted(tiers, key=TIERS.index):
            raise ValueError(f"variant {variant.name!r} goes back down: {tiers}, allowed the order {TIERS}")
        known = {codec.name for codec in self.codecs}
        if not set(variant.codecs) <= known:
            raise ValueError(f"variant {variant.name!r} takes the codecs {variant.codecs}, known {sorted(known)}")
        remote = sum(tier != "device" for tier in tiers)
        if len(variant.codecs) != remote:
            raise ValueError(f"variant {variant.name!r} has {len(variant.codecs)} codecs for {remote} remote parts")
        if variant.exit is not None and variant.exit.part not in {part.name for part in self.parts}:
            raise ValueError(f"variant {variant.name!r} exits at the unknown part {variant.exit.part!r}")
        if variant.exits:
            self._check_exits(variant)

    def _check_exits(self, variant: Variant) -> None:
        known = {part.name for part in self.parts}
        if not {exit.part for exit in variant.exits} <= known:
            raise ValueError(
                f"variant {variant.name!r} exits at {[exit.part for exit in variant.exits]}, known {known}"
            )
        if variant.exit is not None or variant.codecs or len(variant.exits) != len(variant.parts) - 1:
            raise ValueError(f"variant {variant.name!r} has {len(variant.exits)} exits for {len(variant.parts)} parts")
        shares = variant.shares
        falls = list(shares) == sorted(shares, reverse=True) and all(0 <= share <= 1 for share in shares)
        if len(shares) not in (0, len(variant.exits)) or not falls:
            raise ValueError(f"variant {variant.name!r} has the shares {shares}, allowed 1 to 0, never rising")

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, two spaces, UTF-8. The sha256 of these bytes is the bundle's digest."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"

    def codec(self, name: str) -> Codec:
        """KeyError for an unknown one."""
        return {codec.name: codec for codec in self.codecs}[name]

    def variant(self, name: str) -> Variant:
        """KeyError for an unknown one."""
        return {variant.name: variant for variant in self.variants}[name]

    def codec_digest(self, name: str) -> str:
        """sha256 of what both ends must share to speak through this codec: its entry and its tables. Hexadecimal."""
        codec = self.codec(name)
        tables = next((file.sha256 for file in self.assets if file.file == codec.tables), "")
        shared = {"kind": codec.kind, "features": [f.model_dump(mode="json") for f in codec.features], "tables": tables}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def plan_digest(self, variant: str) -> str:
        """sha256 of a variant: its parts' files and its codecs, in order. Hexadecimal."""
        entry = self.variant(variant)
        shared = [[self.part(name).sha256 for name in entry.parts], [self.codec_digest(name) for name in entry.codecs]]
        return hashlib.sha256(json.dumps(shared).encode()).hexdigest()

    def part(self, name: str | None = None) -> Part:
        """The part of that name; without one, the first part of the default variant. KeyError for an unknown one."""
        wanted = name or self.variants[0].parts[0]
        return {part.name: part for part in self.parts}[wanted]
