"""The messages of the Open Inference Protocol v2 over gRPC, with Triton's config, statistics, index and stream.

The table below is all there is: field numbers and types as the protocol fixes them, so that any client's stubs
understand us. Descriptors are built from it when this module is imported, in a pool of their own, which keeps them
apart from another package's generated `inference` messages in the same process.

Source: Open Inference Protocol v2 (KServe), gRPC section; Triton's model configuration and statistics extensions.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# One message a line: `number name type`, `type*` repeated, `type?` one of a choice, `{type}` a map from strings.
_MESSAGES = """
ServerLiveRequest:
ServerLiveResponse: 1 live bool
ServerReadyRequest:
ServerReadyResponse: 1 ready bool
ModelReadyRequest: 1 name string, 2 version string
ModelReadyResponse: 1 ready bool
ServerMetadataRequest:
ServerMetadataResponse: 1 name string, 2 version string, 3 extensions string*
ModelMetadataRequest: 1 name string, 2 version string
ModelMetadataResponse: 1 name string, 2 versions string*, 3 platform string, 4 inputs .TensorMetadata*, \
5 outputs .TensorMetadata*
ModelMetadataResponse.TensorMetadata: 1 name string, 2 datatype string, 3 shape int64*
InferParameter: 1 bool_param bool?, 2 int64_param int64?, 3 string_param string?, 4 double_param double?, \
5 uint64_param uint64?
InferTensorContents: 1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*, 4 uint_contents uint32*, \
5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*, 8 bytes_contents bytes*
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string, 4 parameters {InferParameter}, \
5 inputs .InferInputTensor*, 6 outputs .InferRequestedOutputTensor*, 7 raw_input_contents bytes*
ModelInferRequest.InferInputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters {InferParameter}, \
5 contents InferTensorContents
ModelInferRequest.InferRequestedOutputTensor: 1 name string, 2 parameters {InferParameter}
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string, 4 parameters {InferParameter}, \
5 outputs .InferOutputTensor*, 6 raw_output_contents bytes*
ModelInferResponse.InferOutputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters {InferParameter}, \
5 contents InferTensorContents
ModelStreamInferResponse: 1 error_message string, 2 infer_response ModelInferResponse
ModelConfigRequest: 1 name string, 2 version string
ModelConfigResponse: 1 config ModelConfig
ModelConfig: 1 name string, 2 platform string, 17 backend string, 4 max_batch_size int32, 5 input ModelInput*, \
6 output ModelOutput*, 11 dynamic_batching ModelDynamicBatching, \
14 parameters {ModelParameter}
ModelParameter: 1 string_value string
ModelInput: 1 name string, 2 data_type enum, 4 dims int64*
ModelOutput: 1 name string, 2 data_type enum, 3 dims int64*
ModelDynamicBatching: 1 preferred_batch_size int32*, 2 max_queue_delay_microseconds uint64
ModelStatisticsRequest: 1 name string, 2 version string
ModelStatisticsResponse: 1 model_stats ModelStatistics*
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64, \
5 execution_count uint64, 6 inference_stats InferStatistics, 7 batch_stats InferBatchStatistics*
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration, \
4 compute_input StatisticDuration, 5 compute_infer StatisticDuration, 6 compute_output StatisticDuration
InferBatchStatistics: 1 batch_size uint64, 2 compute_input StatisticDuration, 3 compute_infer StatisticDuration, \
4 compute_output StatisticDuration
StatisticDuration: 1 count uint64, 2 ns uint64
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
RepositoryIndexResponse: 1 models .ModelIndex*
RepositoryIndexResponse.ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
"""

_DATA_TYPES = (
    "INVALID",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "STRING",
    "BF16",
)

# method -> (request, response); only ModelStreamInfer streams, both ways.
_METHODS = {
    "ServerLive": ("ServerLiveRequest", "ServerLiveResponse"),
    "ServerReady": ("ServerReadyRequest", "ServerReadyResponse"),
    "ModelReady": ("ModelReadyRequest", "ModelReadyResponse"),
    "ServerMetadata": ("ServerMetadataRequest", "ServerMetadataResponse"),
    "ModelMetadata": ("ModelMetadataRequest", "ModelMetadataResponse"),
    "ModelInfer": ("ModelInferRequest", "ModelInferResponse"),
    "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse"),
    "ModelConfig": ("ModelConfigRequest", "ModelConfigResponse"),
    "ModelStatistics": ("ModelStatisticsRequest", "ModelStatisticsResponse"),
    "RepositoryIndex": ("RepositoryIndexRequest", "RepositoryIndexResponse"),
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}
_FIELD = re.compile(r"(\d+) (\w+) (\{?)([.\w]+)\}?([*?]?)")


def _build() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="edgekit/open_inference.proto", package=PACKAGE, syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for number, name in enumerate(_DATA_TYPES):
        kinds.value.add(name=f"TYPE_{name}", number=number)
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for line in _MESSAGES.strip().splitlines():
        name, _, fields = line.partition(":")
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        made[name] = message
        for match in _FIELD.finditer(fields):
            _add_field(message, name, *match.groups())
    return file


def _add_field(
    message: descriptor_pb2.DescriptorProto, owner: str, number: str, name: str, is_map: str, kind: str, mark: str
) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if mark == "*" or is_map else _Field.LABEL_OPTIONAL
    if is_map:
        # What protoc makes of `map<string, kind>`: repeated entries of a nested message.
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=_Field.TYPE_MESSAGE,
            label=_Field.LABEL_OPTIONAL,
            type_name=f".{PACKAGE}.{kind}",
        )
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{owner}.{entry.name}"
    elif kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind == "enum":
        field.type, field.type_name = _Field.TYPE_ENUM, f".{PACKAGE}.DataType"
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{owner}{kind}" if kind.startswith(".") else f".{PACKAGE}.{kind}"
    if mark == "?":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_build())


def message(name: str) -> Any:
    """The message class of that name. KeyError for an unknown one."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


METHODS: dict[str, tuple[Any, Any]] = {
    name: (message(request), message(response)) for name, (request, response) in _METHODS.items()
}
STREAMING = frozenset({"ModelStreamInfer"})

ModelInferRequest, ModelInferResponse = METHODS["ModelInfer"]
ModelStreamInferResponse = METHODS["ModelStreamInfer"][1]
InferParameter = message("InferParameter")
ModelConfig = message("ModelConfig")
ModelStatistics = message("ModelStatistics")


def method_path(name: str) -> str:
    """What `grpc.Channel.unary_unary` calls the method `name`."""
    return f"/{SERVICE}/{name}"


def stub(channel: Any, name: str) -> Any:
    """The callable of the unary method `name` on a `grpc.Channel` (or a `grpc.aio` one): request -> response."""
    request, response = METHODS[name]
    return channel.unary_unary(
        method_path(name), request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
