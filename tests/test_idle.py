"""An option without effect is refused before a model is loaded, with the option that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgekit.cli.main import cli
from edgekit.errors import UsageError
from edgekit.idle import refuse_idle
from edgekit.recipe import Recipe

FORMATS = ("onnx", "litert")


def recipe(**options: Any) -> Recipe:
    return Recipe.of({"source": "net", "device": "raspberry-pi-4", **options})


@pytest.mark.parametrize(
    ("options", "told", "fix"),
    [
        ({"split": "blocks.3"}, "--split without --edge or --cloud", "--edge"),
        ({"bottleneck": "learned"}, "--bottleneck without --edge or --cloud", "--edge"),
        ({"train": "photos"}, "--train without --edge, --cloud, --prune-weights", "--edge"),
        ({"epochs": 5}, "--epochs without a bottleneck or tokens that learn", "--train"),
        ({"train": "photos", "compress_tokens": "query@9"}, "--train without --edge", "--edge"),
        ({"epochs": 9, "compress_tokens": "frames@8"}, "--epochs without a bottleneck or tokens that learn", "--train"),
        ({"epochs": 9, "edge": "x86-server"}, "--epochs without a bottleneck or tokens that learn", "--train"),
        ({"epochs": 9, "train": "photos", "prune_weights": "vib"}, "--epochs without a bottleneck", "--edge"),
        ({"recover": 5.0}, "--recover without --prune-weights", "--prune-weights vib@0.5"),
        ({"recover": 0}, "--recover without --prune-weights", "--prune-weights vib@0.5"),
        ({"quantize": "none", "observer": "mse"}, "--observer with --quantize none", "one of them"),
        ({"quantize": "none", "equalize": True}, "--equalize with --quantize none", "one of them"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], told: str, fix: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        refuse_idle(recipe(**options), FORMATS)
    assert fix in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "none", "bottleneck": "auto"},
        {"split": "blocks.3", "bottleneck": "learned", "epochs": 9, "cloud": "x86-server"},
        {"train": "photos", "epochs": 9, "edge": "x86-server"},
        {"train": "photos", "recover": 5.0, "prune_weights": "vib"},
        {"recover": 0, "prune_weights": "auto"},
        {"epochs": 9, "compress_tokens": "query@9"},
        {"train": "photos", "epochs": 9, "compress_tokens": "pool@9"},
        {"observer": "mse", "equalize": True, "opset": 17},
    ],
)
def test_an_option_with_its_own_is_taken(options: dict[str, Any]) -> None:
    refuse_idle(recipe(**options), FORMATS)


def test_an_opset_needs_a_format_that_has_one() -> None:
    with pytest.raises(UsageError, match="--opset without a format"):
        refuse_idle(recipe(opset=17), ("litert",))


def test_the_command_line_refuses_before_the_source_is_looked_at(tmp_path: Path) -> None:
    output = tmp_path / "out.edgekit"
    done = CliRunner().invoke(
        cli, ["export", "no.such:source", "-d", "raspberry-pi-4", "-o", str(output), "--recover", "5"]
    )
    assert done.exit_code == 2
    assert "--recover without --prune-weights" in done.output
    assert not output.exists()
