"""The same bytes on every processor: what one encodes, the other encodes and decodes alike, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.codecs.refinement import decode_refinement, encode_refinement

if TYPE_CHECKING:
    from machine import Machine

LIBRARY_OWN = ("image",)  # its bytes, and JPEG's pixels, are those of the picture libraries' builds
PIXEL_TOLERANCE = 2 / 56  # two of 255 levels, for inverse transforms that round apart, over the smallest std

# Runs there: encodes and decodes everything below the folder, and says with which library versions.
SCRIPT = """
import json, platform, sys
from pathlib import Path
import numpy as np
from edgekit.registry import CODECS
from edgekit.runtimes.codecs.frame import Frame, pack, unpack
from edgekit.runtimes.codecs.refinement import decode_refinement, encode_refinement
from edgekit.tensors import TensorSpec

folder = Path(sys.argv[1])
for line in json.loads((folder / "cases.json").read_text()):
    base = folder / line["slug"]
    tables = base.with_suffix(".tables")
    specs = [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in line["specs"]]
    codec = CODECS.load(line["kind"])(specs, line["rates"], tables.read_bytes() if tables.exists() else None)
    arrays = [np.load(f"{base}-{index}.npy") for index in range(len(specs))]
    shapes = [array.shape for array in arrays]
    for rate in range(line["rates"]):
        Path(f"{base}-{rate}.there").write_bytes(codec.encode(arrays, rate))
        decoded = codec.decode(Path(f"{base}-{rate}.here").read_bytes(), shapes, rate)
        np.savez(f"{base}-{rate}.there.npz", *decoded)
    if line["kind"] == "transform":
        Path(f"{base}-refined.there").write_bytes(encode_refinement(codec, arrays, 3, 1))
        sent = [Path(f"{base}-{name}.here").read_bytes() for name in (3, "refined")]
        np.savez(f"{base}-refined.there.npz", *decode_refinement(codec, *sent, shapes, 3, 1))
frame = unpack((folder / "frame.here").read_bytes())
(folder / "frame.there").write_bytes(pack(frame))
print(platform.machine())
"""


def load_cases() -> Any:
    """tests/ is no package: the matrix of codecs is loaded by its path."""
    path = Path(__file__).parents[1] / "runtimes" / "codecs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("edgekit_codec_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.all_cases()


CASES = load_cases()
FRAME = Frame(bytes(range(256)), ((1, 192, 7, 7), (3, 1000)), 4, "0123456789abcdef", "01234567", "89abcdef", 6, 1000)


@pytest.fixture(scope="module")
def folder(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every codec's features and payloads, from here (.here) and from there (.there); one emulated process."""
    folder = tmp_path_factory.mktemp("codecs")
    lines = []
    for name, case in CASES.items():
        slug = name.replace(" ", "-")
        codec, arrays = case.codec(), case.draw(2, 77)
        if case.tables is not None:
            (folder / slug).with_suffix(".tables").write_bytes(case.tables)
        for index, array in enumerate(arrays):
            np.save(folder / f"{slug}-{index}.npy", array)
        for rate in range(codec.rates):
            (folder / f"{slug}-{rate}.here").write_bytes(codec.encode(arrays, rate))
        if case.kind == "transform":
            (folder / f"{slug}-refined.here").write_bytes(encode_refinement(codec, arrays, 3, 1))
        specs = [[spec.name, spec.dtype, list(spec.shape)] for spec in case.specs]
        lines.append({"slug": slug, "kind": case.kind, "rates": codec.rates, "specs": specs})
    (folder / "cases.json").write_text(json.dumps(lines))
    (folder / "frame.here").write_bytes(pack(FRAME))
    result = machine.run(["-c", SCRIPT, str(folder)], "cortex-a72", timeout_s=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["aarch64"]
    return folder


def decoded_there(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.parametrize("name", CASES)
def test_both_processors_write_the_same_bytes_and_read_the_same_numbers(folder: Path, name: str) -> None:
    case = CASES[name]
    codec, arrays, slug = case.codec(), case.draw(2, 77), name.replace(" ", "-")
    shapes = [array.shape for array in arrays]
    for rate in range(codec.rates):
        here, there = (folder / f"{slug}-{rate}.here").read_bytes(), (folder / f"{slug}-{rate}.there").read_bytes()
        back = codec.decode(there, shapes, rate)
        theirs_of = decoded_there(folder / f"{slug}-{rate}.there.npz")
        for ours, theirs in zip(codec.decode(here, shapes, rate), theirs_of, strict=True):
            if case.kind in LIBRARY_OWN and rate > 0:
                assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE
            else:
                assert ours.tobytes() == theirs.tobytes()
        if case.kind not in LIBRARY_OWN:
            assert here == there
            assert all(a.tobytes() == b.tobytes() for a, b in zip(back, codec.decode(here, shapes, rate), strict=True))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind == "transform"])
def test_both_processors_refine_alike(folder: Path, name: str) -> None:
    case, slug = CASES[name], name.replace(" ", "-")
    codec, arrays = case.codec(), case.draw(2, 77)
    here, there = (folder / f"{slug}-refined.here").read_bytes(), (folder / f"{slug}-refined.there").read_bytes()
    assert here == there
    coarse = (folder / f"{slug}-3.there").read_bytes()
    ours = decode_refinement(codec, coarse, there, [array.shape for array in arrays], 3, 1)
    theirs = decoded_there(folder / f"{slug}-refined.there.npz")
    assert ours[0].tobytes() == theirs[0].tobytes()


def test_both_processors_frame_alike(folder: Path) -> None:
    assert (folder / "frame.here").read_bytes() == (folder / "frame.there").read_bytes()
