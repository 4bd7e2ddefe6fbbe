"""A node without torch still starts, and says what is missing where the engine is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.bundle import Bundle

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Block())
"""


def python(blocked: str, code: str) -> str:
    text = BLOCK.replace("BLOCKED", repr(blocked)) + code
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_and_the_engines_face_import_without_torch() -> None:
    code = "import edgekit.cli.serve, edgekit.runtimes.torch_engine.session, edgekit.runtimes.server\nprint('fine')"
    assert python("torch", code) == "fine"


@pytest.mark.parametrize(
    ("blocked", "precision", "extra"), [("torch", "fp32", "export"), ("triton", "int8", "kernels")]
)
def test_opening_a_part_names_the_extra(cnn: Bundle, blocked: str, precision: str, extra: str) -> None:
    code = f"""
from edgekit.bundle import Bundle
from edgekit.errors import MissingExtraError
from edgekit.runtimes.torch_engine import TorchOptions, open_torch
bundle = Bundle.open({str(cnn.path)!r})
try:
    open_torch(bundle, bundle.manifest.part("whole"), TorchOptions(precision={precision!r}, compile=False))
except MissingExtraError as error:
    print(error.package, error.extra)
"""
    assert python(blocked, code) == f"{blocked} {extra}"
