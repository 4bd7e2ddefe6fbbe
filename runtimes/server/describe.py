"""What a node says of itself and of its models, in the words of the protocol and of Triton's extensions.

Each function gives what JSON and the gRPC messages alike are made from: plain dictionaries with the fields' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from edgekit.runtimes.protocol.asking import ALTERNATIVES, LOOP
from edgekit.runtimes.protocol.frames import BUNDLE, CODEC, MODEL, PLAN, TIER, VERSIONS
from edgekit.runtimes.protocol.tensors import DATATYPES
from edgekit.runtimes.server.model import ServedModel
from edgekit.runtimes.server.statistics import PHASES, STAGES, Duration
from edgekit.tensors import TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "model_repository")

# In a model's configuration: what runs, where that is not the part's file in its own runtime.
RUNS = "edgekit_runs"

_PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


def server() -> dict[str, Any]:
    return {"name": "edgekit", "version": version("edgekit"), "extensions": list(EXTENSIONS)}


def metadata(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": _platform(model),
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def rest_metadata(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """With what JSON has room for: BYTES that may stand for the inputs, and how a model is iterated."""
    described = metadata(model, versions)
    if model.alternatives:
        described["alternative_inputs"] = [
            {"name": name, "datatype": "BYTES", "shape": list(shape)} for name, shape in model.alternatives.items()
        ]
    if model.looped is not None:
        described["loop"] = {**model.looped.loop.model_dump(mode="json"), "max_steps": model.looped.max_steps}
    return described


def config(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """`versions`: all that are served of that name. `dims` leave the batch out where `max_batch_size` is above 0, as
    Triton's configuration does."""
    batched, told = model.is_batchable, {**_digests(model), VERSIONS: ",".join(versions)}

    def entry(spec: TensorSpec) -> dict[str, Any]:
        kind = DATATYPES[spec.dtype]
        shape = _shape(spec)
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": shape[1:] if batched else shape}

    described: dict[str, Any] = {
        "name": model.name,
        "platform": _platform(model),
        "backend": model.backend,
        "max_batch_size": model.batching.max_batch if batched else 0,
        "input": [entry(spec) for spec in model.inputs],
        "output": [entry(spec) for spec in model.outputs],
        "parameters": {key: {"string_value": value} for key, value in told.items()},
    }
    if batched:
        described["dynamic_batching"] = {
            "max_queue_delay_microseconds": int(1e3 * model.batching.max_delay_ms),
        }
    return described


def _digests(model: ServedModel) -> dict[str, str]:
    """What a client compares with its own bundle before it asks anything: the keys of `protocol.frames`."""
    manifest = model.bundle.manifest
    mine = [variant.name for variant in manifest.variants if model.part.name in variant.parts]
    plans = {f"{PLAN}.{name}": manifest.plan_digest(name) for name in mine}
    codecs = {f"{CODEC}.{link.entry.name}": digest for digest, link in model.links.items()}
    media = {ALTERNATIVES: ",".join(model.alternatives)} if model.alternatives else {}
    loop = {LOOP: model.part.loop.model_dump_json()} if model.part.loop is not None else {}
    runs = {RUNS: model.runs} if model.runs else {}
    return {
        TIER: model.part.tier,
        BUNDLE: model.bundle.digest,
        MODEL: model.part.sha256,
        **plans,
        **codecs,
        **media,
        **loop,
        **runs,
    }


def statistics(models: Iterable[ServedModel]) -> dict[str, Any]:
    """The protocol's own stages."""
    return {"model_stats": [_statistics(model, PHASES) for model in models]}


def rest_statistics(models: Iterable[ServedModel]) -> dict[str, Any]:
    """With the stages that are ours."""
    return {"model_stats": [_statistics(model, (*PHASES, *STAGES)) for model in models]}


def _statistics(model: ServedModel, phases: Sequence[str]) -> dict[str, Any]:
    counts = model.statistics.read()
    zero = _duration(Duration())
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counts.last_inference_ms,
        "inference_count": counts.inferences,
        "execution_count": counts.executions,
        "inference_stats": {name: _duration(counts.phases[name]) for name in phases},
        "batch_stats": [
            {"batch_size": rows, "compute_input": zero, "compute_infer": _duration(entry), "compute_output": zero}
            for rows, entry in counts.batches.items()
        ],
    }


def index(models: Iterable[ServedModel]) -> list[dict[str, str]]:
    return [{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in models]


def _duration(entry: Duration) -> dict[str, int]:
    return {"count": entry.count, "ns": entry.ns}


def _platform(model: ServedModel) -> str:
    return _PLATFORMS.get(model.backend, f"edgekit_{model.backend}")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": _shape(spec)}


def _shape(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]
