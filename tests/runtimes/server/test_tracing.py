"""Spans: one a request, its phases below it, and the caller's trace above it, over two nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import InputError, NodeError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.server import Node, NodeOptions

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
X = np.zeros((1, 6), np.float32)


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


def test_a_trace_file_that_cannot_be_written_is_a_node_error(split_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="cannot write"):
        Node([split_bundle], NodeOptions(trace=tmp_path / "no" / "such" / "folder.jsonl"))
