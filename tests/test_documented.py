"""What a user can name stands in the README."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import edgekit
from edgekit.cli.main import COMMANDS
from edgekit.devices.device import ALIASES, profile_names
from edgekit.errors import exit_codes
from edgekit.registry import EXPORTERS, QUANTIZERS, SAMPLES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def _words(text: str) -> set[str]:
    """Names as they stand in code and prose, with hyphens and dots inside."""
    return set(re.findall(r"[A-Za-z0-9_]+(?:[-.][A-Za-z0-9_]+)*", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(readme: str, command: str) -> None:
    assert re.search(rf"\bedgekit {re.escape(command)}\b", readme), f"README.md does not tell `edgekit {command}`"


@pytest.mark.parametrize("name", edgekit.__all__)
def test_every_public_name_is_documented(readme: str, name: str) -> None:
    assert re.search(rf"\bedgekit\.{name}\b|`{name}\b", readme), f"README.md does not tell edgekit.{name}"


@pytest.mark.parametrize("name", [*profile_names(), *ALIASES, *EXPORTERS, *QUANTIZERS, *SAMPLES])
def test_every_device_format_quantizer_and_sample_is_documented(readme: str, name: str) -> None:
    assert name in _words(readme)


@pytest.mark.parametrize("name", edgekit.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    assert name in dir(edgekit)
    assert getattr(edgekit, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edgekit.no_such_name


def test_the_error_tree_at_the_top_of_errors_is_the_real_one() -> None:
    errors = importlib.import_module("edgekit.errors")
    drawn = re.findall(r"^[ │├└─]*(\w+Error) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
    real = {
        (name, str(kind.exit_code))
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.EdgekitError)
    }
    assert set(drawn) == real
    assert {int(code) for _, code in drawn} <= set(exit_codes())
