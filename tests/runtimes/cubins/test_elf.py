"""Reading cubins: as CUDA's own tool reads them, and nothing but an error for what is damaged."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.runtimes.cubins import read_table
from edgekit.runtimes.cubins.elf import read_cubin


@pytest.fixture(scope="module")
def cubins(packed_path: Path) -> list[Path]:
    with Bundle.open(packed_path) as bundle:
        table = read_table(bundle)
        assert table is not None
        return sorted({bundle.asset_path(one.file) for one in table.kernels})


def test_architecture_and_parameters_are_those_that_cudas_tool_reads(cubins: list[Path]) -> None:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    architectures = set()
    for path in cubins:
        told = subprocess.run([tool, "-elf", path], capture_output=True, text=True, check=True).stdout
        machine = read_cubin(path.read_bytes(), path.name)
        ((name, found),) = machine.functions.items()
        assert f".text.{name}" in told
        wanted = {int(n, 16): int(size, 16) for n, size in re.findall(r"Ordinal : (\w+).*?Size\s+: (\w+)", told)}
        assert list(found.sizes) == [wanted[index] for index in range(len(wanted))] and len(wanted) > 5
        assert re.findall(r"\bsm=(\d+)", told) == [machine.arch[3:]]
        architectures.add(machine.arch)
    assert architectures == {"sm_80", "sm_87", "sm_100"}


def test_a_cubin_cut_anywhere_is_an_error(cubins: list[Path]) -> None:
    whole = cubins[0].read_bytes()
    headers_end = int.from_bytes(whole[40:48], "little") + 64 * int.from_bytes(whole[60:62], "little")
    for length in (0, 3, 63, 64, 500, len(whole) // 2, headers_end - 1):
        with pytest.raises(BundleError, match="x is no whole cubin"):
            read_cubin(whole[:length], "x")


def test_changed_bytes_give_an_answer_or_an_error_of_ours(cubins: list[Path]) -> None:
    whole, generator, refused = cubins[0].read_bytes(), random.Random(0), 0
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(3):
            changed[generator.choice([generator.randrange(64), generator.randrange(len(whole))])] ^= (
                1 << generator.randrange(8)
            )
        try:
            read_cubin(bytes(changed), "x")
        except BundleError:
            refused += 1
    assert refused > 50


def test_other_files_are_told_apart(cubins: list[Path]) -> None:
    with pytest.raises(BundleError, match="does not begin as an ELF file"):
        read_cubin(b"PTX " + bytes(100), "x")
    own = bytearray(cubins[0].read_bytes())
    own[18:20] = (62).to_bytes(2, "little")
    with pytest.raises(BundleError, match="machine 62 and class 2, allowed 190"):
        read_cubin(bytes(own), "x")
