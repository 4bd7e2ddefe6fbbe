"""schemathesis, unmodified, against the description that a node writes of itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.runtimes.protocol.asking import KNOWN
from edgekit.runtimes.server import Node, NodeOptions, Security

TOKEN = {"Authorization": "Bearer s3cret"}

# JSON Schema cannot say that data, shape and the model must agree: a request that it accepts may well be a 400.
CONFIG = """
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture(scope="module")
def node(split_bundle: Path) -> Iterator[Node]:
    options = NodeOptions(tier="edge", threads=1, grpc_port=None, security=Security("s3cret"))
    with Node([split_bundle], options) as node:
        yield node


@pytest.mark.parametrize("phases", ["examples,fuzzing", pytest.param("coverage", marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(node: Node, tmp_path: Path, phases: str) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    words = ["--config-file", str(config), "run", f"{node.rest_url}/openapi.json", "--no-color", "--seed", "1"]
    words += ["--max-examples", "2", "--phases", phases]
    words += [word for name, value in TOKEN.items() for word in ("-H", f"{name}: {value}")]
    command = [str(Path(sys.executable).with_name("schemathesis")), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Tested: 16" in result.stdout and " 0 passed" not in result.stdout, result.stdout


def test_every_path_that_is_described_answers(node: Node) -> None:
    described = httpx.get(f"{node.rest_url}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    (model,) = described["paths"]["/v2/models/{model}"]["get"]["parameters"]
    assert model["schema"]["enum"] == [model.name for model in node.catalog.models]
    assert set(described["components"]["schemas"]["InferRequest"]["properties"]["parameters"]["properties"]) == {*KNOWN}
    for path, operations in described["paths"].items():
        address = path.replace("{model}", model["example"]).replace("{version}", "1")
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            answer = httpx.request(method, node.rest_url + address, headers=TOKEN, json=body)
            assert answer.status_code == 200, (path, answer.text)
            if operation.get("security"):
                assert httpx.request(method, node.rest_url + address, json=body).status_code == 401
