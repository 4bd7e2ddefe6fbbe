"""tritonclient, unmodified, in its four forms."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

from edgekit.runtimes.server import Node, NodeOptions

MODEL = "net.middle"
X = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 6)
SYNC = [over_http, over_grpc]
AIO = [over_http_aio, over_grpc_aio]


@pytest.fixture(scope="module")
def node(split_bundle: Path) -> Iterator[Node]:
    with Node([split_bundle], NodeOptions(tier="edge", threads=1)) as node:
        yield node


def url(node: Node, kind: Any) -> str:
    return (node.grpc_url if "grpc" in kind.__name__ else node.rest_url).partition("://")[2]


def example(kind: Any, **settings: Any) -> tuple[list[Any], list[Any]]:
    tensor = kind.InferInput("scaled", X.shape, "FP32")
    tensor.set_data_from_numpy(X, **settings)
    return [tensor], [kind.InferRequestedOutput("shifted")]


@pytest.mark.parametrize("kind", SYNC)
def test_infer(node: Node, kind: Any) -> None:
    with kind.InferenceServerClient(url(node, kind)) as client:
        inputs, outputs = example(kind)
        result = client.infer(MODEL, inputs, outputs=outputs, request_id="seven")
        np.testing.assert_array_equal(result.as_numpy("shifted"), X + 1)
        response = result.get_response()
        assert (response["id"] if isinstance(response, dict) else response.id) == "seven"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_over_http_in_json_and_binary(node: Node, binary_in: bool, binary_out: bool) -> None:
    with over_http.InferenceServerClient(url(node, over_http)) as client:
        inputs, _ = example(over_http, binary_data=binary_in)
        outputs = [over_http.InferRequestedOutput("shifted", binary_data=binary_out)]
        np.testing.assert_allclose(client.infer(MODEL, inputs, outputs=outputs).as_numpy("shifted"), X + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", SYNC)
def test_infer_without_naming_outputs_gives_all(node: Node, kind: Any) -> None:
    with kind.InferenceServerClient(url(node, kind)) as client:
        np.testing.assert_array_equal(client.infer(MODEL, example(kind)[0]).as_numpy("shifted"), X + 1)


@pytest.mark.parametrize("kind", SYNC)
def test_async_infer(node: Node, kind: Any) -> None:
    with kind.InferenceServerClient(url(node, kind)) as client:
        inputs, _ = example(kind)
        if kind is over_http:
            result = client.async_infer(MODEL, inputs).get_result()
        else:
            done: queue.Queue[Any] = queue.Queue()
            client.async_infer(MODEL, inputs, callback=lambda result, error: done.put((result, error)))
            result, error = done.get(timeout=10)
            assert error is None
        np.testing.assert_array_equal(result.as_numpy("shifted"), X + 1)


def test_stream(node: Node) -> None:
    answers: list[Any] = []
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        inputs, _ = example(over_grpc)
        client.async_stream_infer(MODEL, inputs, request_id="a")
        client.async_stream_infer("net.nothing", inputs, request_id="b")
        client.async_stream_infer(MODEL, inputs, request_id="c")
        client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    np.testing.assert_array_equal(answers[2][0].as_numpy("shifted"), X + 1)


def _facts(kind: Any, client: Any) -> list[Any]:
    extra = {} if "http" in kind.__name__ else {"as_json": True}
    return [
        client.is_server_live(),
        client.is_server_ready(),
        client.is_model_ready(MODEL),
        client.is_model_ready(MODEL, "1"),
        client.is_model_ready("net.nothing"),
        client.get_server_metadata(**extra),
        client.get_model_metadata(MODEL, **extra),
        client.get_model_config(MODEL, **extra),
        client.get_inference_statistics(MODEL, **extra),
        client.get_inference_statistics(**extra),
        client.get_model_repository_index(**extra),
    ]


def _check(facts: list[Any]) -> None:
    assert facts[:5] == [True, True, True, True, False]
    server, metadata, config, of_model, of_all, index = facts[5:]
    assert server["name"] == "edgekit" and "binary_tensor_data" in server["extensions"]
    assert metadata["name"] == MODEL and metadata["versions"] == ["1"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 6]
    config = config.get("config", config)
    assert config["max_batch_size"] == 16 and config["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(size) for size in config["input"][0]["dims"]] == [6]
    assert of_model["model_stats"][0]["name"] == of_all["model_stats"][0]["name"] == MODEL
    assert (index["models"] if isinstance(index, dict) else index)[0]["name"] == MODEL


@pytest.mark.parametrize("kind", SYNC)
def test_health_metadata_config_and_statistics(node: Node, kind: Any) -> None:
    with kind.InferenceServerClient(url(node, kind)) as client:
        _check(_facts(kind, client))


@pytest.mark.parametrize("kind", AIO)
def test_infer_and_facts_aio(node: Node, kind: Any) -> None:
    async def talk() -> tuple[np.ndarray, list[Any]]:
        async with kind.InferenceServerClient(url(node, kind)) as client:
            inputs, outputs = example(kind)
            result = await client.infer(MODEL, inputs, outputs=outputs)
            return result.as_numpy("shifted"), [await fact for fact in _facts(kind, client)]

    answer, facts = asyncio.run(talk())
    np.testing.assert_array_equal(answer, X + 1)
    _check(facts)


@pytest.mark.parametrize("kind", SYNC)
def test_statistics_count_requests_and_rows(split_bundle: Path, serve: Callable[..., Node], kind: Any) -> None:
    node = serve(split_bundle, tier="edge", port=0)
    with kind.InferenceServerClient(url(node, kind)) as client:
        for _ in range(3):
            client.infer(MODEL, example(kind)[0])
        extra = {} if kind is over_http else {"as_json": True}
        row = client.get_inference_statistics(MODEL, **extra)["model_stats"][0]
    assert int(row["inference_count"]) == 9 and int(row["execution_count"]) == 3
    assert int(row["inference_stats"]["success"]["count"]) == 3
    assert int(row["batch_stats"][0]["batch_size"]) == 3


@pytest.mark.parametrize("kind", SYNC)
def test_failures_are_explained(node: Node, kind: Any) -> None:
    with kind.InferenceServerClient(url(node, kind)) as client:
        with pytest.raises(InferenceServerException, match=r"unknown model 'net\.nothing'"):
            client.infer("net.nothing", example(kind)[0])
        with pytest.raises(InferenceServerException, match="version"):
            client.infer(MODEL, example(kind)[0], model_version="9")
        narrow = kind.InferInput("scaled", [1, 5], "FP32")
        narrow.set_data_from_numpy(X[:1, :5])
        with pytest.raises(InferenceServerException, match=r"shape \[1, 5\], allowed \['batch', 6\]"):
            client.infer(MODEL, [narrow])
