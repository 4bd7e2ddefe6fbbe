"""Spans: one a request, its phases below it, and the caller's trace above it, over two nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.bundle import Bundle
from edgekit.cli.main import cli
from edgekit.errors import InputError, OutputError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.server import Node, NodeOptions, Security
from edgekit.runtimes.server.schedule import Tenant
from edgekit.runtimes.server.tenants import Guest
from edgekit.runtimes.server.tracing import open_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
X = np.zeros((1, 6), np.float32)
TOKEN, GUEST = "correct-horse-battery-staple-1234", "a-guest-that-knocks-politely-5678"


def spans(path: Path) -> dict[str, dict[str, Any]]:
    return {span["name"]: span for span in map(json.loads, path.read_text().splitlines())}


def test_spans_of_edge_and_cloud_hang_together_below_the_caller(split_bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(split_bundle) as opened:
        wish = Wish(plan=opened.manifest.plan_digest("three"))
    above, below = tmp_path / "cloud.jsonl", tmp_path / "edge.jsonl"
    with Node([split_bundle], NodeOptions(tier="cloud", threads=1, port=None, trace=above)) as cloud:
        options = NodeOptions(tier="edge", threads=1, port=None, trace=below, upstream=cloud.grpc_url)
        with Node([split_bundle], options) as edge, NodeClient(edge.grpc_url) as client:
            client.infer(InferCall("net.middle", {"scaled": X}, wish.parameters()), headers=HEADERS)
    edge_spans, cloud_spans = spans(below), spans(above)
    assert set(edge_spans) == {"infer", "queue", "compute", "encode", "forward"}
    assert set(cloud_spans) == {"infer", "decode", "queue", "compute"}
    assert {span["trace_id"] for span in (*edge_spans.values(), *cloud_spans.values())} == {TRACE}
    assert edge_spans["infer"]["parent_id"] == PARENT
    assert edge_spans["forward"]["parent_id"] == edge_spans["infer"]["span_id"]
    assert cloud_spans["infer"]["parent_id"] == edge_spans["forward"]["span_id"]
    assert edge_spans["infer"]["duration_ms"] >= edge_spans["forward"]["duration_ms"] > 0
    assert (edge_spans["infer"]["edgekit.model"], edge_spans["infer"]["service"]) == ("net.middle", "edgekit-edge")


def test_a_failure_is_told_in_its_span(split_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    options = NodeOptions(tier="edge", threads=1, port=None, trace=path)
    with Node([split_bundle], options) as node, NodeClient(node.grpc_url) as client, pytest.raises(InputError):
        client.infer(InferCall("net.middle", {"other": X}))
    assert spans(path)["infer"]["status"].startswith("InputError: ")


def test_a_trace_goes_on_through_a_node_that_records_none(
    split_bundle: Path, tmp_path: Path, serve: Callable[..., Node]
) -> None:
    path = tmp_path / "cloud.jsonl"
    with Node([split_bundle], NodeOptions(tier="cloud", threads=1, port=None, trace=path)) as cloud:
        edge = serve(split_bundle, tier="edge", upstream=cloud.grpc_url)
        with NodeClient(edge.grpc_url) as client:
            client.infer(InferCall("net.tail", {"shifted": X}), headers=HEADERS)
    assert (spans(path)["infer"]["trace_id"], spans(path)["infer"]["parent_id"]) == (TRACE, PARENT)


def test_a_trace_file_that_cannot_be_written_ends_as_that_of_any_command(split_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "no").write_text("no folder")
    with pytest.raises(OutputError, match="cannot write"):
        Node([split_bundle], NodeOptions(trace=tmp_path / "no" / "spans.jsonl"))
    words = ["serve", str(split_bundle), "--port", "0", "--grpc-port", "0", "--trace", str(tmp_path / "no" / "x")]
    assert CliRunner().invoke(cli, words).exit_code == OutputError.exit_code


def test_a_node_gives_the_spans_of_its_last_requests_to_its_owner(split_bundle: Path, tmp_path: Path) -> None:
    security = Security(token=TOKEN, guests=(Guest(Tenant("guest"), GUEST),))
    options = NodeOptions(tier="edge", threads=1, trace=tmp_path / "spans.jsonl", security=security)
    owner = {"authorization": f"Bearer {TOKEN}"}
    with Node([split_bundle], options) as node:
        with NodeClient(node.grpc_url, ClientOptions(TOKEN)) as client:
            client.infer(InferCall("net.middle", {"scaled": X}), headers=HEADERS)
            client.infer(InferCall("net.middle", {"scaled": X}))
        address = f"{node.rest_url}/v2/traces"
        one = httpx.get(f"{address}/{TRACE}", headers=owner).json()["spans"]
        assert [span["name"] for span in one] == ["queue", "compute", "infer"]
        assert one[-1]["parent_id"] == PARENT
        everything = httpx.get(address, headers=owner).json()["spans"]
        assert everything[:3] == one and len({span["trace_id"] for span in everything}) == 2
        assert httpx.get(f"{address}/{'0' * 32}", headers=owner).status_code == 404
        assert httpx.get(address).status_code == 401
        assert httpx.get(address, headers={"authorization": f"Bearer {GUEST}"}).status_code == 401
        described = httpx.get(f"{node.rest_url}/openapi.json").json()["paths"]
        assert {"/v2/traces", "/v2/traces/{trace}"} <= set(described)
    assert {span["trace_id"] for span in map(json.loads, options.trace.read_text().splitlines())} >= {TRACE}


def test_a_node_that_records_nothing_has_no_traces(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0)
    assert httpx.get(f"{node.rest_url}/v2/traces").status_code == 404
    assert "/v2/traces" not in httpx.get(f"{node.rest_url}/openapi.json").json()["paths"]


def test_what_is_forwarded_in_several_calls_is_one_span_under_its_id(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    tracer = open_tracer("edgekit-edge", path)
    assert tracer is not None
    trace = tracer.start(HEADERS, "net", 1_000)
    trace.finish(90_000, [("forward", 10_000, 20_000), ("compute", 30_000, 40_000), ("forward", 50_000, 60_000)], None)
    tracer.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [span["name"] for span in found] == ["compute", "forward", "infer"]
    assert found[1]["duration_ms"] == pytest.approx(0.05) and found[1]["edgekit.calls"] == 2
    assert found[1]["span_id"] == trace.headers["traceparent"][36:52]


def test_a_caller_over_rest_is_the_parent_too(split_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    inputs = [{"name": "scaled", "datatype": "FP32", "shape": [1, 6], "data": [0.0] * 6}]
    with Node([split_bundle], NodeOptions(tier="edge", threads=1, grpc_port=None, trace=path)) as node:
        answer = httpx.post(f"{node.rest_url}/v2/models/net.middle/infer", headers=HEADERS, json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
    assert (spans(path)["infer"]["trace_id"], spans(path)["infer"]["parent_id"]) == (TRACE, PARENT)
