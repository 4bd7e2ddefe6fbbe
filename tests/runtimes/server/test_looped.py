"""Iterated models behind a node: recordings and prompts over both protocols, together as alone."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from edgekit.bundle import Bundle
from edgekit.runtimes.load import load
from edgekit.runtimes.onnx_session import OnnxSession
from edgekit.runtimes.server import BatchOptions, Node, NodeOptions
from edgekit.runtimes.server.iteration import IterationOptions
from edgekit.runtimes.server.output_guard import GuardOptions

from .steps import HEARD, HOP, WRITTEN, heard_alone, open_step, step_bundle, written_alone

HEARING, WRITING = "hearing.model", "writing.model"
FREE = IterationOptions(slots=4, max_steps=50, guard=GuardOptions(max_period=0))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("steps")
    return [
        step_bundle(folder / "hearing.edgekit", HEARD, "hearing"),
        step_bundle(folder / "writing.edgekit", WRITTEN, "writing"),
    ]


@pytest.fixture(scope="module")
def node(bundles: list[Path]) -> Iterator[Node]:
    with Node(bundles, NodeOptions(tier="device", threads=1, iteration=FREE)) as node:
        yield node


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxSession]:
    with open_step(tmp_path_factory.mktemp("alone"), HEARD) as session:
        yield session


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxSession]:
    with open_step(tmp_path_factory.mktemp("alone"), WRITTEN) as session:
        yield session


def url(node: Node, kind: Any) -> str:
    return (node.grpc_url if kind is over_grpc else node.rest_url).partition("://")[2]


def tensor(kind: Any, name: str, array: np.ndarray, datatype: str) -> list[Any]:
    entry = kind.InferInput(name, array.shape, datatype)
    entry.set_data_from_numpy(array)
    return [entry]


def said(result: Any) -> dict[str, Any]:
    response = result.get_response()
    if isinstance(response, dict):
        return response["parameters"]
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()}


def noise(windows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(windows * HOP).astype(np.float32)


@pytest.mark.parametrize("kind", [over_http, over_grpc])
@pytest.mark.parametrize("shape", [(-1,), (1, -1)])
def test_a_recording_brings_one_row_for_each_window(node, hearing, kind, shape):
    sound = noise(7)[:-1]
    with kind.InferenceServerClient(url(node, kind)) as client:
        result = client.infer(HEARING, tensor(kind, "x", sound.reshape(shape), "FP32"))
    np.testing.assert_array_equal(result.as_numpy("y"), heard_alone(hearing, sound))
    parameters = said(result)
    assert (parameters["edgekit_finish"], parameters["edgekit_steps"]) == ("stop", 7)
    assert parameters["edgekit_degraded"] is False


def test_recordings_of_many_callers_run_together_and_are_heard_as_alone(node: Node, hearing: OnnxSession) -> None:
    sounds = [noise(60 + 3 * seed, seed) for seed in range(8)]
    heard: dict[int, np.ndarray] = {}

    def ask(index: int) -> None:
        with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
            heard[index] = client.infer(HEARING, tensor(over_grpc, "x", sounds[index], "FP32")).as_numpy("y")

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, sound in enumerate(sounds):
        np.testing.assert_array_equal(heard[index], heard_alone(hearing, sound))
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        (stats,) = client.get_inference_statistics(HEARING, as_json=True)["model_stats"]
    # Steps were shared: fewer runs than rows.
    assert int(stats["execution_count"]) < int(stats["inference_count"])


def test_one_step_with_a_state_of_the_callers_own_stays_one_step(node: Node, hearing: OnnxSession) -> None:
    generator = np.random.default_rng(4)
    feeds = {
        spec.name: generator.standard_normal([1 if s == "rows" else s for s in spec.shape]) for spec in hearing.inputs
    }
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        inputs = [tensor(over_grpc, name, array, "FP32")[0] for name, array in feeds.items()]
        result = client.infer(HEARING, inputs)
    for name, wanted in hearing.run(feeds).items():
        np.testing.assert_array_equal(result.as_numpy(name), wanted)


@pytest.mark.parametrize("kind", [over_http, over_grpc])
def test_a_prompt_as_tokens_and_as_text_is_gone_on_with_alike(node, writing, kind):
    wanted = written_alone(writing, [5, 6], 50)
    with kind.InferenceServerClient(url(node, kind)) as client:
        by_tokens = client.infer(WRITING, tensor(kind, "x", np.array([5, 6]), "INT64"))
        by_text = client.infer(WRITING, tensor(kind, "text", np.array([b"\5\6"], object), "BYTES"))
    assert by_tokens.as_numpy("x").tolist() == by_text.as_numpy("x").tolist() == wanted
    assert by_text.as_numpy("text").tolist() == [bytes(wanted)]
    assert said(by_text)["edgekit_finish"] == ("length" if len(wanted) == 50 else "stop")


def test_an_answer_is_bounded_by_the_request_and_by_the_node(node: Node, writing: OnnxSession) -> None:
    prompt = next(p for p in range(2, 11) if len(written_alone(writing, [p], 50)) == 50)
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        for asked, got in ((3, 3), (50, 50), (10**9, 50)):
            inputs = tensor(over_grpc, "x", np.array([prompt]), "INT64")
            result = client.infer(WRITING, inputs, parameters={"edgekit_max_steps": asked})
            assert len(result.as_numpy("x")) == got
            assert said(result)["edgekit_finish"] == "length"


def test_a_seed_draws_the_same_text_again(node: Node) -> None:
    def draw(seed: int) -> list[int]:
        asked = {"edgekit_temperature": 5.0, "edgekit_seed": seed}
        with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
            result = client.infer(WRITING, tensor(over_grpc, "x", np.array([2]), "INT64"), parameters=asked)
        return result.as_numpy("x").tolist()

    drawn = [draw(seed) for seed in (1, 2, 3, 1, 2, 3)]
    assert drawn[:3] == drawn[3:]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]


def test_a_stream_brings_pieces_that_add_up_and_says_how_it_ended(node: Node, hearing: OnnxSession) -> None:
    sound, came = noise(200), queue.Queue()
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        inputs = tensor(over_grpc, "x", sound, "FP32")
        client.async_stream_infer(HEARING, inputs, request_id="r", parameters={"edgekit_stream": True})
        pieces, parameters = [], {}
        while not parameters.get("triton_final_response"):
            result, error = came.get(timeout=20)
            assert error is None
            assert result.get_response().id == "r"
            parameters = said(result)
            pieces.append(result.as_numpy("y"))
        client.async_stream_infer(HEARING, tensor(over_grpc, "x", sound[:HOP], "FP32"))
        result, error = came.get(timeout=20)
        assert error is None
        assert result.as_numpy("y").shape[0] == 1, "a request that asks for no pieces gets one answer"
        client.stop_stream()
    assert len(pieces) > 2
    assert parameters["edgekit_finish"] == "stop"
    np.testing.assert_array_equal(np.concatenate(pieces), heard_alone(hearing, sound))


def test_a_stream_brings_only_the_outputs_that_are_asked_for(node: Node, writing: OnnxSession) -> None:
    came: queue.Queue[Any] = queue.Queue()
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        inputs = tensor(over_grpc, "text", np.array([b"\5\6"], object), "BYTES")
        asked = [over_grpc.InferRequestedOutput("text")]
        client.async_stream_infer(WRITING, inputs, outputs=asked, parameters={"edgekit_stream": True})
        text, parameters = b"", {}
        while not parameters.get("triton_final_response"):
            result, error = came.get(timeout=20)
            assert error is None
            assert result.as_numpy("x") is None
            parameters, text = said(result), text + b"".join(result.as_numpy("text"))
        client.stop_stream()
    assert text == bytes(written_alone(writing, [5, 6], 50))


def test_a_deadline_gives_a_part_marked(node: Node, hearing: OnnxSession) -> None:
    sound = noise(900)
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        inputs = tensor(over_grpc, "x", sound, "FP32")
        for deadline_ms in (4.0, 8.0, 16.0, 64.0, 500.0, 5000.0):
            try:
                result = client.infer(HEARING, inputs, parameters={"edgekit_deadline_ms": deadline_ms})
            except InferenceServerException:
                continue  # not even one window by then
            break
    heard, parameters = result.as_numpy("y"), said(result)
    assert parameters["edgekit_degraded"] == (len(heard) < 900)
    assert parameters["edgekit_finish"] == ("deadline" if len(heard) < 900 else "stop")
    np.testing.assert_array_equal(heard, heard_alone(hearing, sound[: HOP * len(heard)]))


def test_a_caller_that_will_hang_up_gets_its_part_in_time(node: Node, hearing: OnnxSession) -> None:
    """Here the deadline is the transport's own."""
    sound = noise(1000)
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        inputs = tensor(over_grpc, "x", sound, "FP32")
        for timeout_s in (0.02, 0.04, 0.08, 0.5, 5.0):
            try:
                result = client.infer(HEARING, inputs, client_timeout=timeout_s)
            except InferenceServerException:
                continue
            break
    heard = result.as_numpy("y")
    np.testing.assert_array_equal(heard, heard_alone(hearing, sound[: HOP * len(heard)]))


def test_a_stream_that_is_broken_off_frees_its_slot(bundles: list[Path], serve: Callable[..., Node]) -> None:
    node = serve(bundles[0], tier="device", port=0)
    came: queue.Queue[Any] = queue.Queue()
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        client.start_stream(lambda result, error: came.put(result))
        client.async_stream_infer(
            HEARING, tensor(over_grpc, "x", noise(1000), "FP32"), parameters={"edgekit_stream": True}
        )
        came.get(timeout=20)
        client.stop_stream(cancel_requests=True)
    (model,) = node.catalog.models
    ends = time.monotonic() + 20
    while not model.is_idle and time.monotonic() < ends:
        time.sleep(0.01)
    assert model.is_idle


def test_metrics_tell_how_iterations_ended(bundles: list[Path], serve: Callable[..., Node]) -> None:
    node = serve(bundles[0], tier="device", port=0)
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        client.infer(HEARING, tensor(over_grpc, "x", noise(4), "FP32"))
        client.infer(HEARING, tensor(over_grpc, "x", noise(4), "FP32"), parameters={"edgekit_max_steps": 3})
    with urllib.request.urlopen(f"{node.rest_url}/metrics") as response:
        metrics = response.read().decode()
    assert f'edgekit_iterations_total{{finish="stop",model="{HEARING}"}} 1.0' in metrics
    assert f'edgekit_iterations_total{{finish="length",model="{HEARING}"}} 1.0' in metrics
    assert f'edgekit_steps_total{{model="{HEARING}"}} 7.0' in metrics


@pytest.mark.parametrize(
    ("name", "array", "datatype", "parameters", "why"),
    [
        (HEARING, np.zeros((2, 9), np.float32), "FP32", {}, "one sequence"),
        (HEARING, np.zeros(0, np.float32), "FP32", {}, "one sequence"),
        (HEARING, np.zeros(9, np.float64), "FP64", {}, "dtype float64"),
        (HEARING, np.zeros(HOP * 1001, np.float32), "FP32", {}, "1001 steps, allowed 1000"),
        (WRITING, np.array([11]), "INT64", {}, "allowed 0 to 10"),
        (WRITING, np.array([-1]), "INT64", {}, "allowed 0 to 10"),
        (WRITING, np.zeros((2, 2), np.int64), "INT64", {}, "whole numbers"),
        (WRITING, np.zeros(999, np.int64), "INT64", {}, "allowed less than 1000"),
        (WRITING, np.array([2]), "INT64", {"edgekit_max_steps": 0}, "an integer from 1"),
        (WRITING, np.array([2]), "INT64", {"edgekit_temperature": -1.0}, "allowed 0 to 100"),
        (WRITING, np.array([2]), "INT64", {"edgekit_seed": "x"}, "an integer from 0"),
        (WRITING, np.array([2]), "INT64", {"edgekit_top": 3}, "no labels"),
    ],
)
def test_what_cannot_be_iterated_is_refused_as_input(node, name, array, datatype, parameters, why):
    with (
        over_grpc.InferenceServerClient(url(node, over_grpc)) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer(name, tensor(over_grpc, "x", array, datatype), parameters=parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert why in caught.value.message()


def test_tenants_are_told_when_their_tokens_are_used(bundles: list[Path], serve: Callable[..., Node]) -> None:
    options = IterationOptions(slots=2, max_steps=50, tokens_per_minute=4, guard=GuardOptions(max_period=0))
    node = serve(bundles[1], tier="device", port=0, iteration=options)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [2]}]}).encode()
    request = urllib.request.Request(f"{node.rest_url}/v2/models/{WRITING}/infer", body)
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer["outputs"][0]["shape"] == [4]
    assert answer["parameters"]["edgekit_degraded"] is True
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 429
    assert 1 <= int(caught.value.headers["retry-after"]) <= 15


def test_a_node_says_what_may_be_sent(node: Node) -> None:
    with urllib.request.urlopen(f"{node.rest_url}/v2/models/{WRITING}") as response:
        described = json.load(response)
    assert described["alternative_inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [1]}]
    assert described["loop"]["feed"]["kind"] == "choice"
    with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        config = client.get_model_config(WRITING).config
        assert config.parameters["edgekit_alternatives"].string_value == "text"
        assert json.loads(config.parameters["edgekit_loop"].string_value)["max_steps"] == WRITTEN.max_steps
        assert "edgekit_alternatives" not in client.get_model_config(HEARING).config.parameters


def test_a_node_that_stops_finishes_what_is_inside(bundles: list[Path], hearing: OnnxSession) -> None:
    sound, got = noise(900), []
    options = NodeOptions(tier="device", threads=1, port=None, batch=BatchOptions(queue=8))
    with Node(bundles[:1], options) as node, over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
        asked = threading.Thread(
            target=lambda: got.append(client.infer(HEARING, tensor(over_grpc, "x", sound, "FP32")).as_numpy("y"))
        )
        asked.start()
        while node.catalog.is_idle and asked.is_alive():
            pass
        assert node.stop(20.0)
        asked.join()
    np.testing.assert_array_equal(got[0], heard_alone(hearing, sound))


@pytest.mark.slow
def test_silero_vad_hears_each_of_many_recordings_as_alone(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    import edgekit
    from edgekit.zoo.silero import babble

    path = tmp_path / "voice.edgekit"
    edgekit.export("silero-vad", device="x86-server", format="onnx", quantize="none", output=str(path), report=False)
    sounds = [babble(seed, 2.0 + 0.3 * seed) for seed in range(5)]
    options = NodeOptions(tier="device", threads=1, port=None, max_bytes=16 << 20)
    heard: dict[int, np.ndarray] = {}
    with Node([path], options) as node:

        def ask(index: int) -> None:
            with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
                inputs = tensor(over_grpc, "input", sounds[index], "FP32")
                heard[index] = client.infer("silero-vad.model", inputs).as_numpy("output")

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(sounds))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Bundle.open(path) as bundle, load(bundle, threads=1) as session:
        for index, sound in enumerate(sounds):
            state, wanted = np.zeros((2, 1, 128), np.float32), []
            padded = np.concatenate([np.zeros(64, np.float32), sound, np.zeros(-len(sound) % 512, np.float32)])
            for start in range(0, len(padded) - 64, 512):
                outputs = session.run({"input": padded[None, start : start + 576], "state": state})
                state = outputs["stateN"]
                wanted.append(outputs["output"][0])
            np.testing.assert_array_equal(heard[index], np.array(wanted))


@pytest.mark.slow
def test_docstring_lm_writes_for_each_of_many_callers_as_for_one_and_is_stopped_in_a_loop(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    import edgekit

    path = tmp_path / "lm.edgekit"
    edgekit.export("docstring-lm", device="x86-server", format="onnx", quantize="none", output=str(path), report=False)
    prompts = [b"Return the ", b"Set a ", b"This module ", b"Raise "]
    written: dict[int, tuple[bytes, str]] = {}
    with Node([path], NodeOptions(tier="device", threads=1, port=None)) as node:

        def ask(index: int) -> None:
            with over_grpc.InferenceServerClient(url(node, over_grpc)) as client:
                inputs = tensor(over_grpc, "text", np.array([prompts[index]], object), "BYTES")
                result = client.infer("docstring-lm.model", inputs)
                written[index] = result.as_numpy("text")[0], said(result)["edgekit_finish"]

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Bundle.open(path) as bundle, load(bundle, threads=1) as session:
        for index, prompt in enumerate(prompts):
            text, finish = written[index]
            state, likeliest = np.zeros((1, 320), np.float32), b""
            for byte in (b"\0" + prompt + text)[: len(prompt) + len(text) + (finish == "stop")]:
                outputs = session.run({"token": np.array([byte], np.int64), "state": state})
                state = outputs["next_state"]
                likeliest += bytes([int(outputs["logits"][0].argmax())])
            assert likeliest[len(prompt) :][: len(text)] == text
            assert finish in ("stop", "loop"), "greedy bytes end or go round long before 1,024 of them"
    assert "loop" in {finish for _, finish in written.values()}
