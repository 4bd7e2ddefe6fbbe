"""`edgekit deploy`: what goes to stdout, what to a folder, and how wrong words end."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from edgekit.cli.main import cli
from tests.deploy.conftest import write

IMAGE = ("--image", "registry.example/edgekit:1")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    x, y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)
    return write(tmp_path / "net.edgekit", {"tail": ("cloud", x, y)})


def invoke(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["deploy", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_kserve_prints_yaml_that_can_be_applied_as_it_is(bundle: Path) -> None:
    said = invoke("kserve", bundle, *IMAGE, "--replicas", "0:5", "--canary", "20").stdout
    service = yaml.safe_load(said)
    predictor = service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["canaryTrafficPercent"]) == (0, 5, 20)
    assert said.startswith("# edgekit serve /bundles/net.edgekit")
    assert json.loads(invoke("kserve", bundle, *IMAGE, "--replicas", "2", "--json").stdout)["service"]["kind"]


def test_kserve_says_where_the_bundle_has_to_lie(bundle: Path) -> None:
    assert "carry the bundle as /bundles/net.edgekit" in invoke("kserve", bundle, *IMAGE).stderr
    assert invoke("kserve", bundle, *IMAGE, "--storage-uri", "s3://models/net.edgekit").stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        (),
        (*IMAGE, "--mode", "standard"),
        (*IMAGE, "--replicas", "3:1"),
        (*IMAGE, "--replicas", "many"),
        ("--image", "a\nb"),
        (*IMAGE, "--namespace", "UPPER/.."),
        (*IMAGE, "--secret", "a: b"),
    ],
)
def test_kserve_refuses_what_cannot_be_with_2(bundle: Path, words: tuple[str, ...]) -> None:
    invoke("kserve", bundle, *words, code=2)


def test_kserve_without_a_yaml_library_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert 'pip install "edgekit[deploy]"' in invoke("kserve", bundle, *IMAGE, code=6).output


def test_triton_writes_a_repository_and_says_what_is_in_it(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    told = json.loads(invoke("triton", bundle, "-o", output, "--json").stdout)
    assert told["models"] == ["Net.9.tail"] and told["ensembles"] == []
    assert (output / "Net.9.tail" / "1" / "model.onnx").is_file()
    assert "--force replaces it" in invoke("triton", bundle, "-o", output, code=10).output
    assert "Net.9.tail" in invoke("triton", bundle, "-o", output, "--force", "--gpu").stdout


def test_triton_ends_with_5_for_parts_that_it_cannot_run(tmp_path: Path) -> None:
    x, y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)
    bundle = write(tmp_path / "net.edgekit", {"tail": ("cloud", x, y)}, format="litert")
    assert "Net.9.tail (litert)" in invoke("triton", bundle, "-o", tmp_path / "repository", code=5).output


def test_containerfile_prints_one(bundle: Path) -> None:
    said = invoke("containerfile", bundle, "--with-bundle").stdout
    assert said.startswith("#") and 'COPY ["net.edgekit", "/bundles/net.edgekit"]' in said


def test_a_bundle_that_is_none_ends_with_9_and_a_wrong_command_names_the_nearest(tmp_path: Path) -> None:
    invoke("containerfile", tmp_path / "missing.edgekit", code=9)
    assert "did you mean 'kserve'" in invoke("kserv", tmp_path / "x", code=2).output
