"""config.pbtxt: protobuf's text format, and what Triton wants to know of a model and of an ensemble.

Source: Triton Inference Server, model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.deploy.served import ServedPart
from edgekit.runtimes.protocol.tensors import DATATYPES
from edgekit.runtimes.server import BatchOptions
from edgekit.tensors import TensorSpec


class Symbol(str):
    """An enum's value: text without quotes."""

    __slots__ = ()


def text_format(fields: Mapping[str, Any], indent: str = "") -> str:
    """A message: a mapping is a message in it, a list repeats its field."""
    lines = []
    for name, value in fields.items():
        for entry in value if isinstance(value, list | tuple) else (value,):
            if isinstance(entry, Mapping):
                lines += [f"{indent}{name} {{", *text_format(entry, indent + "  ").splitlines(), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(entry)}")
    return "".join(f"{line}\n" for line in lines)


def _scalar(value: object) -> str:
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, str), value
    # Escapes of JSON that text format lacks (\u) never come up: what is not ASCII stays as it is.
    return json.dumps(value, ensure_ascii=False)


def model_config(
    served: ServedPart, batch: BatchOptions, *, instances: int, on_gpu: bool, threads: int | None, told: dict[str, str]
) -> dict[str, Any]:
    """Of one ONNX part; `threads` are the runtime's own in each instance. `told`: parameters without meaning to
    Triton."""
    parameters = {**told, **({"intra_op_thread_count": str(threads)} if threads else {})}
    batched = served.is_batchable
    config: dict[str, Any] = {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "max_batch_size": batch.max_batch if batched else 0,
        "input": [tensor(spec, batched) for spec in served.inputs],
        "output": [tensor(spec, batched) for spec in served.outputs],
        "instance_group": [{"count": instances, "kind": Symbol("KIND_GPU" if on_gpu else "KIND_CPU")}],
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": _parameters(parameters),
    }
    if batched:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(1e3 * batch.max_delay_ms),
            "default_queue_policy": {"timeout_action": Symbol("REJECT"), "max_queue_size": batch.queue},
        }
    return config


def ensemble_config(
    name: str, steps: Sequence[ServedPart], batch: BatchOptions, told: dict[str, str]
) -> dict[str, Any]:
    """Each step reads what the one before it gives, in order; the tensors must fit (`triton.misfit`)."""
    batched = all(step.is_batchable for step in steps)
    scheduled = []
    given = [spec.name for spec in steps[0].inputs]
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        made = [spec.name if last else f"{step.part.name}:{spec.name}" for spec in step.outputs]
        scheduled.append(
            {
                "model_name": step.name,
                "model_version": -1,
                "input_map": [
                    {"key": spec.name, "value": source} for spec, source in zip(step.inputs, given, strict=True)
                ],
                "output_map": [
                    {"key": spec.name, "value": target} for spec, target in zip(step.outputs, made, strict=True)
                ],
            }
        )
        given = made if last else [made[index] for index in order(step, steps[index + 1])]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": batch.max_batch if batched else 0,
        "input": [tensor(spec, batched) for spec in steps[0].inputs],
        "output": [tensor(spec, batched) for spec in steps[-1].outputs],
        "parameters": _parameters(told),
        "ensemble_scheduling": {"step": scheduled},
    }


def order(before: ServedPart, after: ServedPart) -> list[int]:
    """For each input of `after` the output of `before` that feeds it: by name, else in order."""
    outputs = [spec.name for spec in before.outputs]
    if set(outputs) == {spec.name for spec in after.inputs}:
        return [outputs.index(spec.name) for spec in after.inputs]
    return list(range(len(outputs)))


def tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    """`dims` leave the batch out, and are never empty: what has none beside it is reshaped by Triton."""
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    dims = shape[1:] if batched else shape
    entry: dict[str, Any] = {"name": spec.name, "data_type": Symbol(f"TYPE_{DATATYPES[spec.dtype]}")}
    return {**entry, "dims": dims} if dims else {**entry, "dims": [1], "reshape": {}}


def _parameters(told: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in told.items()]
