"""`edgekit serve --engine ray`: what is refused before anything starts (with Ray: tests/runtimes/ray_engine)."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli.main import cli
from edgekit.cli.serve_ray import _ray_unheard
from tests.deploy.conftest import write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    x, y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)
    return write(tmp_path / "net.edgekit", {"tail": ("cloud", x, y)})


def invoke(bundle: Path, *words: str, code: int) -> str:
    result = CliRunner().invoke(cli, ["serve", str(bundle), *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--grpc-port", "9", "--ray-address", "auto"), "--grpc-port with --ray-address"),
        (("--announce",), "--announce with --engine ray"),
        (("--keep-versions", "2"), "--keep-versions with --engine ray"),
        (("--metrics",), "--metrics with --engine ray"),
        (("--replicas", "8:2"), "8:2 replicas"),
        (("--replicas", "some"), "--replicas 2:8"),
        (("--replica-cpus", "0"), "--replica-cpus"),
        (("--ray-address", "ray://head:10001"), "allowed auto or host:port"),
    ],
)
def test_what_ray_has_no_use_for_ends_with_2(bundle: Path, words: tuple[str, ...], said: str) -> None:
    assert said in invoke(bundle, "--engine", "ray", *words, code=2)


@pytest.mark.parametrize("words", [("--replicas", "2"), ("--replica-gpus", "1"), ("--ray-address", "auto")])
def test_rays_options_need_ray(bundle: Path, words: tuple[str, str]) -> None:
    assert f"{words[0]} without the engine ray" in invoke(bundle, *words, code=2)


def test_without_ray_it_ends_with_6_and_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    assert 'pip install "edgekit[ray]"' in invoke(bundle, "--engine", "ray", code=6)


def test_what_ray_prints_as_it_ends_is_no_result(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgekit")
    with pytest.raises(ValueError, match="broken"), _ray_unheard():
        print("(raylet) Task ServeController.graceful_shutdown failed")  # noqa: T201
        raise ValueError("broken")
    assert capfd.readouterr().out == ""
    assert "Ray: (raylet) Task ServeController.graceful_shutdown failed" in caplog.text


def test_a_cluster_that_is_not_there_ends_with_16_at_once(bundle: Path) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert f"no cluster answers at {address}" in invoke(
            bundle, "--engine", "ray", "--tier", "cloud", "--ray-address", address, code=16
        )


def test_ports_hosts_and_bundles_are_checked_before_ray_starts(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "choose another --port" in invoke(bundle, "--engine", "ray", "--port", port, code=15)
        words = ("--engine", "ray", "--port", "0", "--grpc-port", port)
        assert "choose another --grpc-port" in invoke(bundle, *words, code=15)
    assert "without --token-file and --tls" in invoke(bundle, "--engine", "ray", "--host", "0.0.0.0", code=15)
    words = ("--engine", "ray", "--port", "0")
    assert "no part for the tier edge" in invoke(bundle, *words, "--tier", "edge", code=15)
    invoke(tmp_path / "missing.edgekit", *words, code=9)
    many = str(1 + (os.cpu_count() or 1))
    said = invoke(bundle, *words, "--tier", "cloud", "--replica-cpus", many, code=15)
    assert f"a replica needs {many} CPUs, this machine has {os.cpu_count()}" in said


def test_a_torn_bundle_is_named_as_it_was_given(bundle: Path) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    bundle.write_bytes(bundle.read_bytes()[:-100])
    said = invoke(bundle, "--engine", "ray", "--port", "0", "--tier", "cloud", code=9)
    assert str(bundle) in said and str(Path(tempfile.gettempdir(), "edgekit-")) not in said
