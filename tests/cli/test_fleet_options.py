"""How commands find a fleet: with the fleet's extras alone, and with tokens and files that cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
