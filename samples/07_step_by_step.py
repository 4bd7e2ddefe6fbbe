"""A node for what is computed step by step, and for pictures as they are: many callers, one running batch.

python -m samples.07_step_by_step

Exports a voice detector, a small generator of documentation and an image classifier, and serves them in one node. Eight
callers send recordings of different lengths and eight send prompts, all at once: each step runs the rows of all who are
there. Then a generation comes piece by piece, one is stopped because it goes round in a loop, and a photograph goes up
as the JPEG that it is. The client is tritonclient as it comes (`pip install "tritonclient[grpc]"`).
"""

from __future__ import annotations

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from PIL import Image

import edgekit
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.zoo.photographs import photograph
from edgekit.zoo.silero import babble

SAMPLES = ("silero-vad", "docstring-lm", "efficientnet-lite0")
WORDS = ("Return the ", "This module ", "Set a ", "Raise ", "Open the ", "Read a ", "Iterate over ", "Parse ")


def tensor(name: str, array: np.ndarray, datatype: str) -> list[grpc.InferInput]:
    entry = grpc.InferInput(name, array.shape, datatype)
    entry.set_data_from_numpy(array)
    return [entry]


def text(words: str) -> list[grpc.InferInput]:
    return tensor("text", np.array([words.encode()], object), "BYTES")


def finish(result: grpc.InferResult) -> str:
    return result.get_response().parameters["edgekit_finish"].string_param


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{sample}.edgekit" for sample in SAMPLES]
        for sample, path in zip(SAMPLES, paths, strict=True):
            edgekit.export(sample, device="x86-server", format="onnx", quantize="none", output=str(path), report=False)
        with Node(paths, NodeOptions(tier="device", threads=1, port=None)) as node:
            url = node.grpc_url.partition("://")[2]
            with grpc.InferenceServerClient(url) as client, ThreadPoolExecutor(16) as callers:
                together(client, callers)
                piece_by_piece(url)
                round_in_a_loop(client)
                picture(client)


def together(client: grpc.InferenceServerClient, callers: ThreadPoolExecutor) -> None:
    sounds = [babble(seed, 1.0 + seed / 2) for seed in range(8)]
    heard = [callers.submit(client.infer, "silero-vad.model", tensor("input", sound, "FP32")) for sound in sounds]
    asked = {"edgekit_max_steps": 60, "edgekit_temperature": 0.6}
    written = [callers.submit(client.infer, "docstring-lm.model", text(words), parameters=asked) for words in WORDS]
    for one in heard:
        print(
            "speech, 32 ms a mark:",
            "".join(".#"[int(share > 0.5)] for share in one.result().as_numpy("output").ravel()),
        )
    for words, one in zip(WORDS, written, strict=True):
        print(f"{finish(one.result()):>8}: {words + one.result().as_numpy('text')[0].decode(errors='replace')!r}")
    for model in ("silero-vad.model", "docstring-lm.model"):
        (stats,) = client.get_inference_statistics(model, as_json=True)["model_stats"]
        rows, runs = int(stats["inference_count"]), int(stats["execution_count"])
        print(f"{model}: {rows} rows in {runs} runs, {rows / runs:.1f} together")


def piece_by_piece(url: str) -> None:
    """A stream has a client of its own."""
    with grpc.InferenceServerClient(url) as client:
        pieces: list[grpc.InferResult] = []
        client.start_stream(lambda result, error: pieces.append(result))
        asked = {"edgekit_stream": True, "edgekit_max_steps": 40, "edgekit_temperature": 0.6, "edgekit_seed": 3}
        client.async_stream_infer("docstring-lm.model", text("A class that "), parameters=asked)
        client.stop_stream()
    print("in pieces:", [b"".join(piece.as_numpy("text")).decode(errors="replace") for piece in pieces][:12], "...")


def round_in_a_loop(client: grpc.InferenceServerClient) -> None:
    result = client.infer("docstring-lm.model", text("Return the "))
    tokens = result.as_numpy("token")
    print(f"the likeliest byte each time: {finish(result)} after {len(tokens)} bytes")


def picture(client: grpc.InferenceServerClient) -> None:
    stream = io.BytesIO()
    Image.open(photograph("skimage/chelsea.png")).save(stream, "JPEG", quality=90)
    image = tensor("image", np.array([stream.getvalue()], object), "BYTES")
    result = client.infer("efficientnet-lite0.model", image, parameters={"edgekit_top": 3})
    print("a photograph:", [entry.decode() for entry in result.as_numpy("top")[0]])


if __name__ == "__main__":
    main()
