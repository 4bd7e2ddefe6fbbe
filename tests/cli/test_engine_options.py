"""--engine, --device, --precision and --gpu-memory of `edgekit serve`, before a bundle is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgekit.cli.engine_options import SizeType, engine_text, opener, torch_options
from edgekit.cli.main import cli
from edgekit.errors import UnknownNameError, UsageError
from edgekit.runtimes.server.model import open_native

PLAIN = {"engine": "runtime", "device": None, "precision": None, "gpu_memory": None, "threads": 2, "max_batch": 12}


def settings(**given: Any) -> dict[str, Any]:
    return PLAIN | given


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("512 mb", 512 * 10**6), ("7.5GiB", 15 << 29), ("100kB", 10**5), ("3B", 3), ("1MiB", 1 << 20)],
)
def test_a_size_is_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert SizeType().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "8TB", "8 G B", "0MB", "1e3MB", ""])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="8GB"):
        SizeType().convert(text, None, None)


def test_the_runtime_engine_opens_each_part_in_its_own_runtime() -> None:
    assert torch_options(settings()) is None
    assert opener(None) is open_native


def test_the_torch_engine_takes_its_options_and_the_nodes() -> None:
    options = torch_options(settings(engine="torch", device="cuda:1", precision="bf16", gpu_memory=10**9))
    assert options is not None
    assert (options.device, options.precision, options.memory_bytes) == ("cuda:1", "bf16", 10**9)
    assert options.threads == 2 and options.buckets == (1, 2, 4, 8, 12)
    assert engine_text(options) == "torch, bf16 on cuda:1"


@pytest.mark.parametrize(("name", "value"), [("device", "cpu"), ("precision", "int8"), ("gpu_memory", 5)])
def test_an_option_of_torch_without_it_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match="without the torch engine"):
        torch_options(settings(**{name: value}))


def test_an_unknown_device_is_told_before_a_bundle_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="gpu"):
        torch_options(settings(engine="torch", device="gpu"))
    done = CliRunner().invoke(cli, ["serve", str(tmp_path / "none.edgekit"), "--engine", "torch", "--device", "gpu"])
    assert done.exit_code == 2 and "cuda" in done.stderr
