"""How commands find a fleet: with the fleet's extras alone, and with tokens and files that cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Invoke = Callable[..., Result]

# What only nodes need: `pip install "edgekit[fleet]"` brings none of it.
_ABSENT = ("grpc", "google", "google_crc32c", "zstandard", "constriction", "zeroconf", "torch", "psycopg", "boto3")
_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from edgekit.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("words", [("status",), ("people",), ("push", "none.edgekit"), ("telemetry",), ("simulate",)])
def test_a_fleet_is_asked_with_the_fleets_extras_alone(words: tuple[str, ...]) -> None:
    code = _WITHOUT.format(absent=_ABSENT)
    asked = subprocess.run(
        [sys.executable, "-c", code, "fleet", *words, "--fleet", "http://127.0.0.1:9"],
        env={"EDGEKIT_FLEET_TOKEN": "ekp_x", "PATH": "", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "No module" not in asked.stderr and "not installed" not in asked.stderr
    assert asked.returncode == (9 if words[0] == "push" else 16), asked.stderr


@pytest.mark.parametrize("token", ["ekp_one two", "ekp_a\nb", "ekp_\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_token_that_is_not_one_plain_word_is_told_without_showing_it(
    invoke: Invoke, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", token)
    result = invoke("fleet", "status", "--fleet", "http://127.0.0.1:9", code=2)
    assert "EDGEKIT_FLEET_TOKEN is not one word" in result.stderr and "ekp_a" not in result.stderr


def test_the_authority_may_come_from_the_environment(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", "ekp_x")
    monkeypatch.setenv("EDGEKIT_FLEET_CA", str(tmp_path / "none.pem"))
    monkeypatch.setenv("EDGEKIT_FLEET", "https://127.0.0.1:9")
    for words in (("status",), ("people", "remove", "ada")):
        result = invoke("fleet", *words, code=2)
        assert "certificate files cannot be used" in result.stderr, words


def test_an_option_that_stands_behind_the_command_of_a_group_is_told_where_it_belongs(invoke: Invoke) -> None:
    result = invoke("fleet", "people", "add", "ada", "viewer", "--ca", "fleet.pem", code=2)
    assert "no such option --ca of `add`" in result.stderr
    assert "it stands before that: edgekit fleet people --ca ... add" in result.stderr
