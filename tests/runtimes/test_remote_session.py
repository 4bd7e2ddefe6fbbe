from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.errors import InputError, MismatchError, SessionError, UnknownNameError, UnreachableError, UsageError
from edgekit.runtimes.remote_session import RemoteSession
from edgekit.runtimes.server import Node, NodeOptions


def two_inputs() -> bytes:
    """features float32 [2, 3], ids int64 [2] -> scores (features doubled), codes (ids + 1)."""
    nodes = [
        helper.make_node("Add", ["features", "features"], ["scores"]),
        helper.make_node("Add", ["ids", "one"], ["codes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [2]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("codes", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    data = two_inputs()
    part = Part(
        **describe_file("two.onnx", data).model_dump(),
        name="two",
        format="onnx",
        precision="fp32",
        inputs=(
            TensorEntry(name="features", dtype="float32", shape=(2, 3)),
            TensorEntry(name="ids", dtype="int64", shape=(2,)),
        ),
        outputs=(
            TensorEntry(name="scores", dtype="float32", shape=(2, 3)),
            TensorEntry(name="codes", dtype="int64", shape=(2,)),
        ),
    )
    manifest = Manifest(
        name="pair",
        task="other",
        device="raspberry-pi-5",
        parts=(part,),
        variants=(Variant(name="two", parts=("two",)),),
        provenance=Provenance(
            edgekit="0", versions={}, source_kind="callable", source="pair", source_sha256="0" * 64, recipe={}
        ),
    )
    path = tmp_path_factory.mktemp("pair") / "pair.edgekit"
    write_bundle(path, manifest, {"parts/two.onnx": data}, {"schema_version": 1}, "<!doctype html>")
    with Bundle.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(bundle: Bundle) -> Iterator[str]:
    with Node([Path(bundle.path)], NodeOptions(threads=1)) as node:
        yield node.grpc_url


@pytest.fixture
def session(bundle: Bundle, url: str) -> Iterator[RemoteSession]:
    with RemoteSession.of_part(url, bundle.manifest, "two", bundle_digest=bundle.digest) as opened:
        assert isinstance(opened, RemoteSession)
        yield opened


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"features": rng.random((2, 3), np.float32), "ids": rng.integers(0, 9, 2)}


def test_outputs_carry_names_dtypes_and_numbers_in_order(session: RemoteSession) -> None:
    outputs = session.run(dict(reversed(feeds().items())))
    assert list(outputs) == ["scores", "codes"]
    np.testing.assert_array_equal(outputs["scores"], 2 * feeds()["features"])
    np.testing.assert_array_equal(outputs["codes"], feeds()["ids"] + 1)
    assert outputs["codes"].dtype == np.int64


def test_outputs_are_the_callers_to_keep(session: RemoteSession) -> None:
    kept = session.run(feeds(0))["scores"]
    session.run(feeds(1))
    np.testing.assert_array_equal(kept, 2 * feeds(0)["features"])
    kept += 1  # writable


@pytest.mark.parametrize("layout", ["read-only", "fortran", "strided"])
def test_an_input_may_lie_in_memory_in_any_way(session: RemoteSession, layout: str) -> None:
    given = feeds()
    plain = session.run(given)["scores"]
    if layout == "read-only":
        given["features"].flags.writeable = False
    elif layout == "fortran":
        given["features"] = np.asfortranarray(given["features"])
    else:
        given["features"] = np.repeat(given["features"], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(session.run(given)["scores"], plain)


def test_a_wrong_input_is_an_error_before_anything_is_sent(session: RemoteSession) -> None:
    with pytest.raises(InputError, match="allowed"):
        session.run({**feeds(), "ids": feeds()["ids"].astype(np.int32)})
    session.run(feeds())


def test_what_a_server_says_of_its_model_is_enough(url: str, bundle: Bundle) -> None:
    with RemoteSession.of_server(url, "pair.two") as session:
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [
            ("features", "float32", (2, 3)),
            ("ids", "int64", (2,)),
        ]
        np.testing.assert_array_equal(session.run(feeds())["codes"], feeds()["ids"] + 1)


def test_close_is_idempotent_and_ends_running(bundle: Bundle, url: str) -> None:
    session = RemoteSession.of_part(url, bundle.manifest, "two")
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.run(feeds())


def test_the_bare_call_repeats(session: RemoteSession) -> None:
    call = session.bare(feeds())
    call()
    call()


def test_another_bundle_on_the_node_is_a_mismatch(bundle: Bundle, url: str) -> None:
    with (
        RemoteSession.of_part(url, bundle.manifest, "two", bundle_digest="0" * 64) as session,
        pytest.raises(MismatchError),
    ):
        session.run(feeds())


def test_outputs_that_are_not_those_expected_are_a_mismatch(bundle: Bundle, url: str) -> None:
    part = bundle.manifest.part("two")
    inputs, outputs = ([entry.spec() for entry in entries] for entries in (part.inputs, part.outputs))
    outputs[0] = dataclasses.replace(outputs[0], shape=(2, 4))
    with RemoteSession(url, "pair.two", inputs, outputs) as session, pytest.raises(MismatchError, match="scores"):
        session.run(feeds())


def test_nobody_there_is_unreachable(bundle: Bundle) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"grpc://127.0.0.1:{port}"
    with (
        RemoteSession.of_part(url, bundle.manifest, "two", deadline_ms=2000) as session,
        pytest.raises(UnreachableError, match=str(port)),
    ):
        session.run(feeds())


def test_names_and_addresses_that_cannot_be(bundle: Bundle) -> None:
    with pytest.raises(UnknownNameError, match="two"):
        RemoteSession.of_part("grpc://127.0.0.1:1", bundle.manifest, "tow")
    with pytest.raises(UsageError, match="grpc://"):
        RemoteSession.of_part("http://127.0.0.1:1", bundle.manifest, "two")
    with pytest.raises(UsageError, match="deadline"):
        RemoteSession.of_part("grpc://127.0.0.1:1", bundle.manifest, "two", deadline_ms=0)
