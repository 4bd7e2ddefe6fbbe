"""The REST face in OpenAPI 3.1, written out from what this node serves: its models' names are the paths' choices."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from edgekit.runtimes.protocol.asking import MAX_INTEGER, MAX_STEPS, MAX_TEMPERATURE, SEED, STREAM, TEMPERATURE, TOP
from edgekit.runtimes.protocol.calls import CHECKSUM
from edgekit.runtimes.protocol.frames import BUNDLE, DEADLINE, LONGEST_S, NEXT_RATE, PLAN, SENDER
from edgekit.runtimes.protocol.tensors import CONTENTS, DATATYPES
from edgekit.runtimes.server.catalog import Catalog
from edgekit.runtimes.server.model import ServedModel

Json = dict[str, Any]

_LENGTH_HEADER = "Inference-Header-Content-Length"
_JSON = "application/json"
MAX_EXAMPLE_BYTES = 4096

_TRACE: Json = {
    "name": "trace",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}


def document(catalog: Catalog, *, with_metrics: bool, with_token: bool, with_traces: bool = False) -> Json:
    """`with_token`: everything but health asks for a bearer token. `with_traces`: the last ones are kept."""
    shown = catalog.models[0]
    model = _in_path("model", [model.name for model in catalog.models], shown.name)
    number = _in_path("version", [model.version for model in catalog.models], shown.version)
    paths: Json = {
        "/v2/health/live": _get("The process answers", "Live", open=True),
        "/v2/health/ready": _get("Requests are taken", "Ready", open=True, extra={"503": _json("Draining", "Ready")}),
        "/v2": _get("The server", "ServerMetadata"),
        "/v2/models/stats": _get("Statistics of every model", "Statistics"),
        "/v2/repository/index": _index(),
        "/openapi.json": _get("This description", None, open=True),
    }
    if with_metrics:
        paths["/metrics"] = _metrics()
    if with_traces:
        paths["/v2/traces"] = _get("The spans of the last requests", "Spans")
        paths["/v2/traces/{trace}"] = _get(
            "The spans of one request", "Spans", [_TRACE], {"404": _error("No trace of that id is kept")}
        )
    for base, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, number]),
    ):
        missing = {"404": _error("No such model or version")}
        paths |= {
            base: _get("A model", "ModelMetadata", parameters, missing),
            f"{base}/ready": _get(
                "The model takes requests", "ModelReady", parameters, missing | {"503": _json("Draining", "ModelReady")}
            ),
            f"{base}/config": _get("Triton's configuration", "Config", parameters, missing),
            f"{base}/stats": _get("Statistics of a model", "Statistics", parameters, missing),
            f"{base}/infer": _infer(parameters, shown, _alternatives(catalog)),
        }
    described: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "edgekit node",
            "version": version("edgekit"),
            "description": "Open Inference Protocol v2 with binary tensors; Triton's configuration and statistics.",
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if with_token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in paths.values():
            for operation in path.values():
                if not operation.pop("x-open"):
                    operation["security"] = [{"token": []}]
                    operation["responses"]["401"] = _error("No token, or a wrong one")
    else:
        for path in paths.values():
            for operation in path.values():
                del operation["x-open"]
    return described


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json(description: str, schema: str | None) -> Json:
    return {"description": description, "content": {_JSON: {"schema": _ref(schema) if schema else {"type": "object"}}}}


def _error(description: str) -> Json:
    return _json(description, "Error")


def _get(
    summary: str,
    schema: str | None,
    parameters: list[Json] | None = None,
    extra: Json | None = None,
    open: bool = False,
) -> Json:
    return {
        "get": {
            "summary": summary,
            "parameters": parameters or [],
            "responses": {"200": _json(summary, schema), **(extra or {})},
            "x-open": open,
        }
    }


def _index() -> Json:
    listed = {"type": "array", "items": _ref("IndexEntry")}
    return {
        "post": {
            "summary": "What is served",
            "requestBody": {"required": False, "content": {_JSON: {"schema": {"type": "object"}}}},
            "responses": {
                "200": {"description": "Models and versions", "content": {_JSON: {"schema": listed}}},
                "400": _error("The body is not a JSON object"),
                "408": _error("The body did not arrive in time"),
                "413": _error("The body is too long"),
                "415": _error("The body is compressed, or of another type"),
            },
            "x-open": False,
        }
    }


def _metrics() -> Json:
    text = {"description": "Prometheus metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"get": {"summary": "Prometheus metrics", "responses": {"200": text}, "x-open": False}}


def _in_path(name: str, choices: list[str], example: str) -> Json:
    schema = {"type": "string", "enum": sorted(set(choices))}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _example(model: ServedModel) -> Json:
    """A request that `model` answers: one sample of zeros."""
    inputs = []
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        zero: bool | int = False if spec.dtype == "bool" else 0
        data = [zero] * math.prod(shape)
        inputs.append({"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape, "data": data})
    return {"inputs": inputs}


def _alternatives(catalog: Catalog) -> str:
    """Which models take what else than their tensors, in words; "" where none does."""
    words = {
        "image": "JPEG, PNG, WebP, GIF or BMP bytes, sent with the binary extension",
        "text": "UTF-8 text",
    }
    told = []
    for name, what in words.items():
        models = sorted({model.name for model in catalog.models if name in model.alternatives})
        if models:
            told.append(f"{', '.join(models)}: one tensor `{name}` of datatype BYTES ({what}) instead of the inputs.")
    looped = sorted({model.name for model in catalog.models if model.looped is not None})
    if looped:
        told.append(f"{', '.join(looped)}: a whole sequence or prompt instead of one step; the state is carried here.")
    return " ".join(told)


def _infer(parameters: list[Json], shown: ServedModel, alternatives: str) -> Json:
    length = {
        "name": _LENGTH_HEADER,
        "in": "header",
        "required": False,
        "description": "The length of the JSON at the front of a body with binary tensors",
        "schema": {"type": "integer", "minimum": 0},
    }
    binary = {"schema": {"type": "string", "contentEncoding": "binary"}}
    errors = {
        "400": "Not what the protocol or the model allows",
        "404": "No such model or version",
        "408": "The body did not arrive in time",
        "409": "A frame, plan or bundle that is not served here",
        "413": "The body is too long",
        "415": "The body is compressed, or of another type",
        "429": "The queue is full: see Retry-After",
        "500": "The runtime failed",
        "503": "Draining, or the upstream cannot be reached",
        "504": "The deadline passed",
    }
    body: Json = {"schema": _ref("InferRequest")}
    if sum(spec.size_bytes for spec in shown.inputs) <= MAX_EXAMPLE_BYTES:
        body["example"] = _example(shown)
    answer = {
        "description": "The model's outputs",
        "headers": {_LENGTH_HEADER: {"schema": {"type": "integer"}, "required": False}},
        "content": {_JSON: {"schema": _ref("InferAnswer")}, "application/octet-stream": binary},
    }
    return {
        "post": {
            "summary": "Run a model",
            **({"description": alternatives} if alternatives else {}),
            "parameters": [*parameters, length],
            "requestBody": {"required": True, "content": {_JSON: body}},
            "responses": {"200": answer, **{code: _error(text) for code, text in errors.items()}},
            "x-open": False,
        }
    }


def _asked() -> Json:
    """The parameters of `protocol.asking.KNOWN`."""
    return {
        TOP: {"type": "integer", "minimum": 1, "description": "A classifier answers so many labels too, as `top`"},
        MAX_STEPS: {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_INTEGER,
            "description": "Tokens that an iterated model writes (its prompt does not count), or windows, at most; the "
            "node's own bound holds where it is less, and the answer then says that it ended by `length`",
        },
        TEMPERATURE: {"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE, "description": "0: the likeliest"},
        SEED: {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER, "description": "Of the draws"},
        STREAM: {"type": "boolean", "description": "An iterated model answers each step as soon as it is made"},
        DEADLINE: {"type": "number", "maximum": 1e3 * LONGEST_S, "description": "Milliseconds that the caller has"},
        PLAN: {"type": "string", "description": "Digest of the variant whose last part answers"},
        BUNDLE: {"type": "string", "description": "Digest of the bundle, which must be served here"},
        NEXT_RATE: {"type": "integer", "description": "The rung at which this node codes for the node above it"},
        SENDER: {"type": "string", "description": "The caller's own name, by which its frames can be refined"},
        CHECKSUM: {"type": "integer", "description": "CRC32C over the raw contents in order; gRPC only"},
    }


def _object(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _schemas() -> Json:
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    texts = {"type": "array", "items": text}
    shape = {"type": "array", "items": {"type": "integer", "minimum": -1}}
    parameters = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    tensors = {"type": "array", "items": _ref("TensorMetadata")}
    configured = {
        "type": "array",
        "items": _object(["name", "data_type", "dims"], name=text, data_type=text, dims=shape),
    }
    size = {"type": "integer", "minimum": 0, "maximum": (1 << 40) - 1}
    data = {"type": "array"}
    ready = {"type": "boolean"}
    return {
        "Error": _object(["error"], error=text),
        "Spans": _object(["spans"], spans={"type": "array", "items": {"type": "object"}}),
        "Live": _object(["live"], live=ready),
        "Ready": _object(["ready"], ready=ready),
        "ModelReady": _object(["ready"], name=text, ready=ready),
        "ServerMetadata": _object(["name", "version", "extensions"], name=text, version=text, extensions=texts),
        "TensorMetadata": _object(["name", "datatype", "shape"], name=text, datatype=text, shape=shape),
        "ModelMetadata": _object(
            ["name", "platform", "inputs", "outputs"],
            name=text,
            versions=texts,
            platform=text,
            inputs=tensors,
            outputs=tensors,
            alternative_inputs={
                "type": "array",
                "items": _ref("TensorMetadata"),
                "description": "BYTES tensors, each of which may stand for the inputs",
            },
            loop={"type": "object", "description": "What a step of an iterated model carries and is fed"},
        ),
        "Config": _object(
            ["name", "platform", "max_batch_size", "input", "output"],
            name=text,
            platform=text,
            backend=text,
            max_batch_size=count,
            input=configured,
            output=configured,
        ),
        "Duration": _object(["count", "ns"], count=count, ns=count),
        "ModelStatistics": _object(
            ["name", "version", "inference_count", "execution_count", "inference_stats"],
            name=text,
            version=text,
            last_inference=count,
            inference_count=count,
            execution_count=count,
            inference_stats={"type": "object", "additionalProperties": _ref("Duration")},
        ),
        "Statistics": _object(["model_stats"], model_stats={"type": "array", "items": _ref("ModelStatistics")}),
        "IndexEntry": _object(["name"], name=text, version=text, state=text, reason=text),
        "InferInput": _object(
            ["name", "shape", "datatype", "data"],
            name={"type": "string", "minLength": 1},
            shape={"type": "array", "items": size, "maxItems": 16},
            datatype={"type": "string", "enum": [*CONTENTS, "FP16"]},
            parameters=parameters,
            data=data,
        ),
        "InferOutput": _object(["name"], name={"type": "string", "minLength": 1}, parameters=parameters),
        "InferRequest": _object(
            ["inputs"],
            id=text,
            parameters={**parameters, "properties": _asked()},
            inputs={"type": "array", "minItems": 1, "items": _ref("InferInput")},
            outputs={"type": "array", "items": _ref("InferOutput")},
        ),
        "AnswerTensor": _object(
            ["name", "shape", "datatype"], name=text, shape=shape, datatype=text, parameters=parameters, data=data
        ),
        "InferAnswer": _object(
            ["model_name", "outputs"],
            model_name=text,
            model_version=text,
            id=text,
            parameters=parameters,
            outputs={"type": "array", "items": _ref("AnswerTensor")},
        ),
    }
