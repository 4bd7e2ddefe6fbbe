"""report.json: what was measured, where and with what. The manifest beside it holds what is the same everywhere.

Infinite decibels (outputs equal to the last bit) are written as the string "Infinity", so that the file stays JSON.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import BundleError

Measure = Literal["top1_agreement", "accuracy", "cosine", "sqnr_db"]


class Entry(BaseModel):
    """Unknown keys are errors; infinities survive JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Quality(Entry):
    """`value` of `measure` over `samples`, with its 95 % interval where it has one.

    `reference` says against what: "float model", "labels". `held_out`: no sample was used for calibration.
    """

    measure: Measure
    value: float
    low: float | None = None
    high: float | None = None
    samples: int
    reference: str
    held_out: bool = True
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    cosine: float | None = None
    float_accuracy: float | None = None


class Layer(Entry):
    """`sqnr_db`: this layer's output against the float model's, everything before it quantized too."""

    name: str
    sqnr_db: float
    precision: str


class Predicted(Entry):
    """What the latency model expects on a device; `low` to `high` is its error bar."""

    device: str
    p50: float
    low: float
    high: float


class Latency(Entry):
    """Milliseconds. `host` is this machine's median of the artifact, `float_host` of its float twin in the same format:
    of the whole model, where this one was pruned, and `whole_host` of the whole model in the artifact's own precision.

    `speedup` = float_host / host.
    """

    host: float | None = None
    host_p95: float | None = None
    float_host: float | None = None
    whole_host: float | None = None
    speedup: float | None = None
    threads: int = 1
    isa: str = ""
    runs: int = 0
    predicted: tuple[Predicted, ...] = ()


class Memory(Entry):
    """`peak_rss_bytes`: of the process that ran the artifact here. `peak_activation_bytes`: live tensors at the worst
    point of the schedule."""

    artifact_bytes: int
    peak_activation_bytes: int | None = None
    peak_rss_bytes: int | None = None


class RooflinePoint(Entry):
    """A segment: FLOP per byte against GFLOP/s as predicted; `milliseconds` is its share of a run."""

    name: str
    kind: str
    precision: str
    flop_per_byte: float
    gflops: float
    milliseconds: float


class Roofline(Entry):
    """`peaks_gflops`: precision -> the flat roof, `bandwidth_gbps` the slope."""

    device: str
    unit: str
    bandwidth_gbps: float
    peaks_gflops: dict[str, float]
    points: tuple[RooflinePoint, ...] = ()


class Energy(Entry):
    """Of the whole board, for one run. `estimated` unless a meter measured it; `method` says how."""

    energy_mj: float
    estimated: bool = True
    method: str = ""


class Candidate(Entry):
    """One format and precision that was tried; `why_not` is empty for the chosen one. `whole`: the model before it was
    pruned, built to compare with."""

    format: str
    precision: str
    chosen: bool
    why_not: str = ""
    whole: bool = False
    sqnr_db: float | None = None
    agreement: float | None = None
    host_p50_ms: float | None = None
    predicted_ms: float | None = None
    predicted_low_ms: float | None = None
    predicted_high_ms: float | None = None
    size_bytes: int | None = None


class ParityStep(Entry):
    """eager -> captured -> quantized -> artifact: each compared with the one before on real samples."""

    step: str
    sqnr_db: float
    max_abs: float


class Change(Entry):
    """A pass that changed the model, and what it says of that."""

    name: str
    detail: str


class Fallback(Entry):
    layer: str
    precision: str
    why: str


class Sample(Entry):
    """A sample of the evaluation. `thumbnail`: a JPEG, PNG or WebP as base64; `top`: (label, probability)."""

    name: str
    media_type: Literal["image/jpeg", "image/png", "image/webp"] = "image/jpeg"
    thumbnail: str = Field(default="", pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=400_000)
    top: tuple[tuple[str, float], ...] = ()
    float_top: tuple[tuple[str, float], ...] = ()


class InformationPoint(Entry):
    """What crosses `cut` at `rate`: `bits_sent` a sample, and how much it knows of the input and of the answer, bits.

    Estimates from samples: at most about log2 of their number can be seen.
    """

    cut: str
    rate: int
    bits_sent: float = Field(ge=0)
    i_xt: float = Field(ge=0)
    i_ty: float = Field(ge=0)


class SplitRow(Entry):
    """A variant at one rate of its codec: bytes on the wire for a sample; `drop` in points, against the float model."""

    variant: str
    codec: str
    rate: int
    bytes_mean: float = Field(ge=0)
    bytes_p95: float = Field(ge=0)
    drop: float
    agreement: float | None = None


class EvaluationReport(Entry):
    """`seconds`: by pass. `stages_ms`: preprocess, inference, postprocess. `host`: the machine that measured."""

    schema_version: Literal[1] = 1
    bundle: str
    title: str = ""
    task: str = "other"
    device: str
    device_title: str = ""
    format: str = ""
    precision: str = ""
    quality: Quality | None = None
    layers: tuple[Layer, ...] = ()
    latency_ms: Latency | None = None
    memory: Memory | None = None
    roofline: Roofline | None = None
    flops: float | None = None
    energy: Energy | None = None
    compression_ratio: float | None = None
    float_size_bytes: int | None = None
    stages_ms: dict[str, float] = {}
    candidates: tuple[Candidate, ...] = ()
    parity: tuple[ParityStep, ...] = ()
    changes: tuple[Change, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    samples: tuple[Sample, ...] = ()
    split: tuple[SplitRow, ...] = ()
    information: tuple[InformationPoint, ...] = ()
    seconds: dict[str, float] = {}
    peak_memory_bytes: int | None = None
    host: str = ""
    isa: str = ""
    commit: str | None = None
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `write_bundle` and `json.dumps`."""
        # Through text: only there does pydantic spell infinities as strings.
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain

    @classmethod
    def from_json(cls, value: dict[str, Any], origin: str = "report.json") -> EvaluationReport:
        """Raises BundleError for a report of another schema."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(key) for key in first["loc"])
            raise BundleError(
                f"{origin} does not fit: {where}: {first['msg']}", hint="pip install --upgrade edgekit, or export again"
            ) from error
