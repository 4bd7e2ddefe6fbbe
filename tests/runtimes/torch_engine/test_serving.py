"""A node whose parts run in torch answers like one whose parts run in their own runtimes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.cli.engine_options import opener
from edgekit.runtimes.load import load
from edgekit.runtimes.server import BatchOptions, Node, NodeOptions
from edgekit.runtimes.torch_engine import TorchOptions, open_torch


@pytest.mark.parametrize("bounded", [False, True], ids=["without a bound", "one model at a time"])
def test_a_node_serves_every_part_from_its_program(
    cnn: Bundle, images: np.ndarray, tmp_path: Path, bounded: bool
) -> None:
    part = cnn.manifest.part("whole")
    plain = TorchOptions(threads=1, compile=False, cache_dir=tmp_path)
    with open_torch(cnn, part, plain) as session:
        largest = session._size_bytes()  # type: ignore[attr-defined]
    options = TorchOptions(threads=1, compile=False, cache_dir=tmp_path, memory_bytes=largest if bounded else None)
    with load(cnn, part="whole", threads=1) as reference:
        wanted = reference.run({"image": images})["logits"]
    chosen = NodeOptions(
        tier="cloud", grpc_port=None, threads=1, batch=BatchOptions(max_batch=4), open_session=opener(options)
    )
    with Node([cnn.path], chosen) as node:
        told = httpx.get(f"{node.rest_url}/v2/models/{cnn.manifest.name}.whole/config").json()
        assert (told["platform"], told["backend"]) == ("edgekit_torch-engine", "torch-engine")
        assert told["parameters"]["edgekit_runs"]["string_value"] == "torch fp32 on cpu, eager"
        assert {model.name.partition(".")[2] for model in node.catalog.models} == {
            entry.name for entry in cnn.manifest.parts if entry.tier == "cloud"
        }

        def ask(index: int) -> np.ndarray:
            body = {
                "inputs": [
                    {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": images[index].tolist()}
                ]
            }
            answer = httpx.post(f"{node.rest_url}/v2/models/{cnn.manifest.name}.whole/infer", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
            return np.array(answer.json()["outputs"][0]["data"], np.float32)

        with ThreadPoolExecutor(4) as pool:
            found = np.stack(list(pool.map(ask, range(len(images)))))
    # some fifty operators that each round to 24 bits, here and in ONNX Runtime
    np.testing.assert_allclose(found, wanted, atol=100 * np.finfo(np.float32).eps * np.abs(wanted).max(), rtol=0)
