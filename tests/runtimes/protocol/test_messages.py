"""Our messages and tritonclient's generated ones are the same bytes, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from edgekit.runtimes.protocol.messages import METHODS, STREAMING, message, method_path


def messages() -> list[Any]:
    """Every message of ours, the nested ones too."""
    pool = message("InferParameter").DESCRIPTOR.file
    found: list[Any] = []

    def walk(descriptor: Any) -> None:
        found.append(descriptor)
        for inner in descriptor.nested_types:
            walk(inner)

    for descriptor in pool.message_types_by_name.values():
        walk(descriptor)
    return found


def theirs(full_name: str) -> Descriptor:
    names = full_name.split(".")[1:]
    module = service_pb2 if names[0] in service_pb2.DESCRIPTOR.message_types_by_name else model_config_pb2
    descriptor = module.DESCRIPTOR.message_types_by_name[names[0]]
    for name in names[1:]:
        descriptor = descriptor.nested_types_by_name[name]
    return descriptor


@pytest.mark.parametrize("ours", messages(), ids=lambda ours: ours.full_name)
def test_every_field_has_the_number_type_and_label_of_the_generated_one(ours: Any) -> None:
    generated = theirs(ours.full_name)
    assert ours.GetOptions().map_entry == generated.GetOptions().map_entry
    for field in ours.fields:
        other = generated.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
        if field.message_type is not None:
            assert field.message_type.full_name == other.message_type.full_name
        if field.enum_type is not None:
            assert {v.name: v.number for v in field.enum_type.values} == {
                v.name: v.number for v in other.enum_type.values
            }


def test_methods_are_those_of_the_generated_service() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, (request, response) in METHODS.items():
        method = service.methods_by_name[name]
        assert method_path(name) == f"/{service.full_name}/{name}"
        assert request.DESCRIPTOR.full_name == method.input_type.full_name
        assert response.DESCRIPTOR.full_name == method.output_type.full_name
        assert (name in STREAMING) == method.client_streaming


def test_a_request_crosses_to_the_generated_classes_and_back() -> None:
    ours = message("ModelInferRequest")(model_name="m", id="1", raw_input_contents=[b"\0" * 8])
    ours.parameters["a"].double_param = 1.5
    ours.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    generated = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert generated.parameters["a"].double_param == 1.5 and list(generated.inputs[0].shape) == [1, 2]
    assert message("ModelInferRequest").FromString(generated.SerializeToString()) == ours
