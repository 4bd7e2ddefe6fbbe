"""A report with every field in use, small."""

from __future__ import annotations

import base64
import io
import math

import pytest
from PIL import Image

from edgekit.report.model import (
    Candidate,
    Energy,
    EvaluationReport,
    Fallback,
    InformationPoint,
    Latency,
    Layer,
    Memory,
    ParityStep,
    Predicted,
    Quality,
    Roofline,
    RooflinePoint,
    Sample,
    SplitRow,
)


@pytest.fixture
def report() -> EvaluationReport:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "JPEG")
    return EvaluationReport(
        bundle="net.edgekit",
        title="A net",
        task="classification",
        device="raspberry-pi-5",
        device_title="Raspberry Pi 5",
        format="ONNX",
        precision="int8",
        quality=Quality(
            measure="top1_agreement", value=0.972, low=0.951, high=0.984, samples=432, reference="float model"
        ),
        layers=(
            Layer(name="stem", sqnr_db=38.1, precision="int8"),
            Layer(name="depthwise", sqnr_db=12.5, precision="int8"),
            Layer(name="head", sqnr_db=math.inf, precision="fp32"),
        ),
        latency_ms=Latency(
            host=4.18,
            float_host=8.05,
            speedup=1.93,
            isa="x86_64 avx2",
            runs=200,
            predicted=(Predicted(device="raspberry-pi-5", p50=6.9, low=5.6, high=8.5),),
        ),
        memory=Memory(artifact_bytes=4_912_331, peak_activation_bytes=2_408_448, peak_rss_bytes=92_000_000),
        roofline=Roofline(
            device="Raspberry Pi 5",
            unit="4 x Cortex-A76",
            bandwidth_gbps=5.5,
            peaks_gflops={"int8": 614.0, "fp32": 154.0},
            points=(
                RooflinePoint(
                    name="stem", kind="conv", precision="int8", flop_per_byte=20.0, gflops=90.0, milliseconds=1.0
                ),
                RooflinePoint(
                    name="move", kind="movement", precision="int8", flop_per_byte=0.0, gflops=0.0, milliseconds=0.1
                ),
            ),
        ),
        flops=0.78e9,
        energy=Energy(energy_mj=48.3, method="7 W for 6.9 ms"),
        compression_ratio=3.8,
        float_size_bytes=18_600_000,
        stages_ms={"preprocess": 3.1, "inference": 4.2, "postprocess": 0.08},
        candidates=(
            Candidate(
                format="onnx", precision="int8", chosen=True, sqnr_db=24.6, agreement=0.972, size_bytes=4_912_331
            ),
            Candidate(format="executorch", precision="int8", chosen=False, why_not="not installed"),
        ),
        parity=(ParityStep(step="captured", sqnr_db=math.inf, max_abs=0.0),),
        fallbacks=(Fallback(layer="head", precision="fp32", why="alone it limits the net"),),
        samples=(
            Sample(
                name="cat.png",
                thumbnail=base64.b64encode(picture.getvalue()).decode(),
                top=(("cat", 0.9), ("dog", 0.1)),
                float_top=(("dog", 0.6),),
            ),
        ),
        split=(
            SplitRow(variant="split", codec="block", rate=0, bytes_mean=900, bytes_p95=990, drop=0.2, agreement=0.99),
        ),
        information=(InformationPoint(cut="block", rate=0, bits_sent=7200, i_xt=4.1, i_ty=2.9),),
        seconds={"quantize": 21.7},
        peak_memory_bytes=2_210_000_000,
        host="a machine",
        isa="x86_64 avx2",
        commit="0123abc",
        versions={"edgekit": "0.1.0", "torch": "2.13.0"},
        notes=("nothing else",),
    )
