"""The REST face: what it says when all is well, and what it says to the careless and the hostile."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgekit.runtimes.server import Node, NodeOptions

X = [[0.5, -1.0, 2.0, 0.0, 1.0, 3.0]]
INFER = "/v2/models/net.middle/infer"
MAX_BYTES = 4096


@pytest.fixture(scope="module")
def node(split_bundle: Path) -> Iterator[Node]:
    options = NodeOptions(tier="edge", threads=1, grpc_port=None, max_bytes=MAX_BYTES, body_timeout_s=0.8)
    with Node([split_bundle], options) as node:
        yield node


@pytest.fixture
def http(node: Node) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.rest_url) as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "scaled", "shape": [1, 6], "datatype": "FP32", "data": X} | changes]}


@pytest.mark.parametrize("path", ["", "/versions/1"])
def test_infer_in_json(http: httpx.Client, path: str) -> None:
    answer = http.post(f"/v2/models/net.middle{path}/infer", json=body() | {"id": "a"}).json()
    (output,) = answer["outputs"]
    np.testing.assert_allclose(output["data"], np.add(X, 1)[0])
    assert (answer["id"], answer["model_version"], output["shape"]) == ("a", "1", [1, 6])
    assert answer["parameters"]["edgekit_tier"] == "edge"


def test_infer_with_binary_tensors_both_ways(http: httpx.Client) -> None:
    raw = np.array(X, np.float32).tobytes()
    tensor = {"name": "scaled", "shape": [1, 6], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = http.post(INFER, content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))})
    at = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:at])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    np.testing.assert_allclose(np.frombuffer(answer.content[at:], np.float32), np.add(X, 1)[0])


def test_health_metadata_config_statistics_index(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2").json()["name"] == "edgekit"
    assert http.get("/v2/models/net.middle/versions/1").json()["inputs"][0]["datatype"] == "FP32"
    assert http.get("/v2/models/net.middle/ready").json() == {"name": "net.middle", "ready": True}
    config = http.get("/v2/models/net.middle/config").json()
    assert config["parameters"]["edgekit_tier"] == {"string_value": "edge"}
    assert len(config["parameters"]["edgekit_bundle"]["string_value"]) == 64
    for path in ("/v2/models/stats", "/v2/models/net.middle/stats"):
        assert http.get(path).json()["model_stats"][0]["name"] == "net.middle"
    assert http.post("/v2/repository/index").json()[0]["state"] == "READY"


def test_metrics_count_requests_failures_and_bytes(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0, grpc_port=None)
    with httpx.Client(base_url=node.rest_url) as http:
        http.post(INFER, json=body())
        http.post(INFER, json=body(shape=[1, 5]))
        http.post("/v2/models/made-up/infer", json=body())
        text = http.get("/metrics").text
    assert 'edgekit_requests_total{model="net.middle"} 1.0' in text
    assert 'edgekit_failures_total{kind="InputError",model="net.middle"} 1.0' in text
    assert 'edgekit_failures_total{kind="UnknownNameError",model=""} 1.0' in text
    assert "made-up" not in text
    assert 'edgekit_batch_rows_count{model="net.middle"} 1.0' in text
    assert 'edgekit_queue_depth{model="net.middle"} 0.0' in text
    assert 'edgekit_bytes_total{protocol="rest",way="in"}' in text


def test_metrics_can_be_left_out(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0, grpc_port=None, with_metrics=False)
    assert httpx.get(f"{node.rest_url}/metrics").status_code == 404


MALFORMED = {
    "no JSON": b"{",
    "not an object": b"[1]",
    "not UTF-8": b'{"inputs": "\xff"}',
    "NaN": json.dumps(body(data=[float("nan")] * 6)).encode(),
    "infinity": json.dumps(body(data=[float("inf")] * 6)).encode(),
    "beyond float32": json.dumps(body(data=[1e300] * 6)).encode(),
    "nested without end": b"[" * 3000,
    "a number without end": b'{"inputs": ' + b"9" * 4000 + b"}",
    "no inputs": b"{}",
    "empty inputs": b'{"inputs": []}',
    "an input that is text": b'{"inputs": ["scaled"]}',
    "no data": json.dumps(body(data=None)).encode(),
    "too few values": json.dumps(body(data=[1.0])).encode(),
    "texts for numbers": json.dumps(body(data=["1"] * 6)).encode(),
    "truths for numbers": json.dumps(body(data=[True] * 6)).encode(),
    "fractions for integers": json.dumps(body(datatype="INT32", data=[1.5] * 6)).encode(),
    "uneven rows": json.dumps(body(data=[[1, 2, 3], 4])).encode(),
    "a wrong shape": json.dumps(body(shape=[2, 3])).encode(),
    "a negative shape": json.dumps(body(shape=[-1, 6])).encode(),
    "an enormous shape": json.dumps(body(shape=[1 << 39, 1 << 39])).encode(),
    "an unknown datatype": json.dumps(body(datatype="FP12")).encode(),
    "another name": json.dumps(body(name="other")).encode(),
    "half a surrogate": b'{"id": "\\ud800", ' + json.dumps(body()).encode()[1:],
    "an unknown output": json.dumps(body() | {"outputs": [{"name": "zzz"}]}).encode(),
    "a parameter that is a list": json.dumps(body() | {"parameters": {"a": []}}).encode(),
    "an endless deadline": json.dumps(body() | {"parameters": {"edgekit_deadline_ms": 1e300}}).encode(),
    "an endless temperature": json.dumps(body() | {"parameters": {"edgekit_temperature": 10**400}}).encode(),
    "a deadline that is text": json.dumps(body() | {"parameters": {"edgekit_deadline_ms": "soon"}}).encode(),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_are_400_with_an_error_body(http: httpx.Client, case: str) -> None:
    answer = http.post(INFER, content=MALFORMED[case], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"} and answer.json()["error"]


@pytest.mark.parametrize("length", ["", "x", "-1", "99999", "1" * 40, "\u00b2"])
def test_a_wrong_json_length_is_400(http: httpx.Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode("latin-1")}
    assert http.post(INFER, json=body(), headers=headers).status_code == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 23, 25, 1 << 40, -1, True, "24"])
def test_a_wrong_binary_size_is_400(http: httpx.Client, size: Any) -> None:
    tensor = {"name": "scaled", "shape": [1, 6], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert http.post(INFER, content=head + bytes(24), headers=headers).status_code == 400


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/v2/models/nothing", 404),
    ("GET", "/v2/models/net.middle/versions/7", 404),
    ("GET", "/elsewhere", 404),
    ("GET", INFER, 405),
    ("DELETE", "/v2", 405),
])  # fmt: skip
def test_wrong_places_have_the_protocols_error_body(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status and answer.json()["error"]
    assert (status == 405) == ("allow" in answer.headers)


def test_oversized_bodies_are_413_whether_they_say_so_or_not(http: httpx.Client) -> None:
    assert http.post(INFER, content=b" " * (MAX_BYTES + 1)).status_code == 413
    assert http.post(INFER, content=iter([b" " * 1000] * 6)).status_code == 413


def test_compressed_and_foreign_bodies_are_415(http: httpx.Client) -> None:
    assert http.post(INFER, content=b"{}", headers={"Content-Encoding": "gzip"}).status_code == 415
    assert http.post(INFER, content=b"<x/>", headers={"Content-Type": "text/xml"}).status_code == 415


def test_a_passed_deadline_is_504(http: httpx.Client) -> None:
    answer = http.post(INFER, json=body() | {"parameters": {"edgekit_deadline_ms": -1.0}})
    assert (answer.status_code, answer.headers["edgekit-error"]) == (504, "DeadlineError")


def test_an_accident_is_500_and_the_connection_serves_on(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by accident")

    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
    sent = json.dumps(body()).encode()
    request = f"{head}Content-Length: {len(sent)}\r\n".encode()
    with monkeypatch.context() as broken:
        broken.setattr(node.engine, "infer", fail)
        received = _talk(
            node,
            request + b"\r\n" + sent,
            b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            pause_s=0.3,
        )
    assert received.startswith(b"HTTP/1.1 500") and b"the request failed: ZeroDivisionError" in received
    assert received.count(b"HTTP/1.1 200") == 1
    assert "by accident" in caplog.text and "ASGI" not in caplog.text


def _talk(node: Node, *pieces: bytes, pause_s: float) -> bytes:
    """Sends the pieces slowly until the node has enough; what it answered until it hung up."""
    address = node.rest_url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        except OSError:
            return b""
        received = b""
        try:
            while chunk := connection.recv(4096):
                received += chunk
        except OSError:
            pass
        return received


def test_headers_that_trickle_are_cut_off(node: Node, http: httpx.Client) -> None:
    pieces = [b"POST /v2 HTTP/1.1\r\n", *[b"X-%d: 1\r\n" % n for n in range(40)]]
    assert _talk(node, *pieces, pause_s=0.05) == b""
    assert http.get("/v2/health/live").status_code == 200


def test_a_silent_connection_is_cut_off(node: Node) -> None:
    assert _talk(node, b"", pause_s=0) == b""


def test_a_body_that_trickles_is_408(node: Node, http: httpx.Client) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
    assert _talk(node, head, pause_s=0).startswith(b"HTTP/1.1 408")
    assert http.post(INFER, json=body()).status_code == 200


def test_a_second_request_that_trickles_is_cut_off_too(node: Node) -> None:
    first = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    received = _talk(node, first, b"GET /v2 HT", pause_s=0.1)
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("junk", [b"\x16\x03\x01 hello\r\n\r\n", b"GET\r\n\r\n", b"A" * 40_000])
def test_what_is_not_http_is_400(node: Node, junk: bytes) -> None:
    received = _talk(node, junk, pause_s=0)
    assert received.startswith(b"HTTP/1.1 400") and b'{"error"' in received


def test_accepted_connections_do_not_hold_back_small_answers(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="cloud", port=0)
    assert node._rest is not None
    listener = node._rest._socket.dup()
    listener.setblocking(True)
    # What asyncio asks before it sets TCP_NODELAY; an accepted socket inherits it from the one that listens.
    assert (listener.proto, listener.type) == (socket.IPPROTO_TCP, socket.SOCK_STREAM)
    listener.close()
