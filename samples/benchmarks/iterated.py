"""Continuous batching of iterated models, and pictures straight to a node, each beside the same work one at a time.

python -m samples.benchmarks.iterated

- `docstring-lm`: 32 prompts, half of them greedy, half drawn, 16 slots; `silero-vad`: 32 recordings of 2 to 8 seconds.
  One at a time is the same scheduler with one slot. Answers are compared bit by bit.
- `efficientnet-lite0`: JPEGs of a camera's size by `run`'s path in a loop, and by a node that four callers ask, where
  decoding overlaps with computing.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import edgekit
from edgekit.bundle import Bundle
from edgekit.bundle.loop import Choice, Chunks
from edgekit.runtimes.load import load
from edgekit.runtimes.predict import Predictor
from edgekit.runtimes.preprocess import decode_image
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.tensors import object_array
from edgekit.runtimes.server import Node, NodeOptions
from edgekit.runtimes.server.decoding import MediaOptions
from edgekit.runtimes.server.iteration import IterationOptions, Iterations
from edgekit.runtimes.server.ongoing import Outcome
from edgekit.runtimes.server.sequences import Generation, Iterated, Recording
from edgekit.runtimes.server.slots import Slots
from edgekit.zoo.photographs import CALIBRATION, photograph
from edgekit.zoo.silero import babble
from samples.benchmarks.common import environment, rounded, save

REQUESTS, SLOTS, TOKENS, TURNS = 32, 16, 300, 3
CALLERS, CAMERA_PIXELS = 4, 1600
STAGES = ("preprocess", "inference", "postprocess")


def iterated(path: Path, make: Callable[[Slots, int], Iterated]) -> dict[str, Any]:
    """Steps a second together and one at a time, in turns; the median of `TURNS`."""
    seconds: dict[int, list[float]] = {1: [], SLOTS: []}
    answers: dict[int, list[Outcome]] = {}
    with Bundle.open(path) as bundle, load(bundle, threads=1) as session:
        loop = bundle.manifest.part().loop
        assert loop is not None
        for _ in range(TURNS):
            for count in seconds:
                slots = Slots(session.run, session.inputs, session.outputs, loop, count)
                iterations = Iterations(path.stem, slots, IterationOptions(slots=count, queue=REQUESTS))
                sequences = [make(slots, number) for number in range(REQUESTS)]
                start = time.perf_counter()
                asked = [iterations.submit(sequence) for sequence in sequences]
                answers[count] = [one.result() for one in asked]
                seconds[count].append(time.perf_counter() - start)
                iterations.close()
    steps = sum(one.steps for one in answers[1])
    same = all(
        np.array_equal(one.tensors[name], other.tensors[name])
        for one, other in zip(answers[1], answers[SLOTS], strict=True)
        for name in one.tensors
    )
    alone_s, together_s = (float(np.median(seconds[count])) for count in (1, SLOTS))
    return {
        "requests": REQUESTS,
        "slots": SLOTS,
        "steps": steps,
        "steps_per_s": {"one_at_a_time": steps / alone_s, "together": steps / together_s},
        "speedup": alone_s / together_s,
        "bit_equal": same,
        "finish": sorted({one.finish for one in answers[SLOTS]}),
    }


def prompts(slots: Slots, number: int) -> Iterated:
    assert isinstance(slots.loop.feed, Choice)
    words = ("Return the ", "Set a ", "This module ", "Raise ")[number % 4].encode()
    return Generation(slots.loop.feed, list(words), TOKENS, temperature=0.7 * (number % 2), seed=number)


def recordings(slots: Slots, number: int) -> Iterated:
    assert isinstance(slots.loop.feed, Chunks)
    return Recording(slots.loop.feed, babble(number, 2.0 + 6.0 * number / REQUESTS), slots.results, 10**6)


def camera_pictures() -> list[bytes]:
    """JPEGs whose shorter side has `CAMERA_PIXELS`."""
    encoded = []
    for name in CALIBRATION:
        image = decode_image(photograph(name))
        scale = CAMERA_PIXELS / min(image.size)
        stream = io.BytesIO()
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    return encoded


def pictures(path: Path, folder: Path) -> dict[str, Any]:
    """Pictures a second by `run`'s path in a loop, and by a node's engine that `CALLERS` threads ask, in turns."""
    encoded = camera_pictures()
    files = [folder / f"{number}.jpg" for number in range(len(encoded))]
    for file, data in zip(files, encoded, strict=True):
        file.write_bytes(data)
    seconds: dict[str, list[float]] = {"run": [], "node": [], "node_draft": []}
    scores: dict[str, list[np.ndarray]] = {}
    stages: dict[str, float] = {}
    with Bundle.open(path) as bundle, load(bundle, threads=1) as session:
        predictor, post = Predictor(bundle, session), bundle.manifest.postprocess
        assert post is not None
        for _ in range(TURNS):
            start = time.perf_counter()
            predictions = [predictor.predict(file) for file in files]
            seconds["run"].append(time.perf_counter() - start)
            scores["run"] = [one.outputs[post.output] for one in predictions]
            stages = {name: float(np.median([p.latency_ms[name] for p in predictions])) for name in STAGES}
            for name, draft in (("node", False), ("node_draft", True)):
                taken, scores[name] = _by_node(path, encoded, post.output, draft)
                seconds[name].append(taken)
    wanted = np.concatenate(scores["run"])
    return {
        "pictures": len(encoded),
        "shorter_side": CAMERA_PIXELS,
        "pictures_per_s": {name: len(encoded) / float(np.median(taken)) for name, taken in seconds.items()},
        "run_stages_ms": stages,
        "same_bits_as_run": bool(np.array_equal(wanted, np.concatenate(scores["node"]))),
        "draft_same_top": float(np.mean(wanted.argmax(1) == np.concatenate(scores["node_draft"]).argmax(1))),
    }


def _by_node(path: Path, encoded: list[bytes], output: str, draft: bool) -> tuple[float, list[np.ndarray]]:
    """Seconds and scores; the node's transports are left out."""
    found: dict[int, np.ndarray] = {}
    options = NodeOptions(tier="device", threads=1, port=None, media=MediaOptions(threads=2, draft=draft))
    with Node([path], options) as node:
        (model,) = node.catalog.models

        def ask(first: int) -> None:
            for number in range(first, len(encoded), CALLERS):
                call = InferCall(model.name, {"image": object_array([encoded[number]])})
                found[number] = node.engine.infer(call).tensors[output]

        callers = [threading.Thread(target=ask, args=(first,)) for first in range(CALLERS)]
        start = time.perf_counter()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        taken = time.perf_counter() - start
    return taken, [found[number] for number in range(len(encoded))]


@click.command(help=__doc__)
def main() -> None:
    results: dict[str, Any] = {"environment": {**environment(1), "cores": len(os.sched_getaffinity(0))}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for sample, measure in (
            ("docstring-lm", lambda path: iterated(path, prompts)),
            ("silero-vad", lambda path: iterated(path, recordings)),
            ("efficientnet-lite0", lambda path: pictures(path, folder)),
        ):
            path = folder / f"{sample}.edgekit"
            edgekit.export(sample, device="x86-server", format="onnx", quantize="none", output=str(path), report=False)
            results[sample] = rounded(measure(path))
            print(sample, json.dumps(results[sample], indent=2), flush=True)
    save("iterated", results)


if __name__ == "__main__":
    main()
