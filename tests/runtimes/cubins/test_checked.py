"""A kernel that does not prove itself is replaced by the codec, loudly; the result is the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgekit.bundle import Bundle
from edgekit.cli.main import cli
from edgekit.errors import DeviceError, UnknownNameError, UsageError
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.cubins import KernelSet, RaggedDecoder, open_decoder, open_gpu
from edgekit.runtimes.cubins.checked import reference, self_check

from .conftest import CHANNELS, KEPT, POSITIONS, Emulator, plain_bundle


def symbols_of(rates: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(-20, 21, (KEPT[rate], 1, 15)).astype(np.int32) for rate in rates]


def animate(emulator: Emulator, bundle: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        for one in KernelSet(bundle, gpu).cubins:
            if one.kernel.startswith("ragged-"):
                emulator.run(one, bundle.asset_path(one.file).read_bytes())


def test_a_kernel_that_proves_itself_decodes(
    emulator: Emulator, packed: Bundle, codec: TransformCodec, caplog: pytest.LogCaptureFixture
) -> None:
    animate(emulator, packed)
    symbols = symbols_of([0, 2, 1])
    with open_decoder(packed, "cut", library=emulator.path) as decoder:
        assert decoder.why is None
        before = len(emulator.launches)
        assert before == 2  # one for each width of symbols
        got = decoder.decode(symbols, [0, 2, 1], POSITIONS)
        assert len(emulator.launches) == before + 1
    assert np.array_equal(got, reference(codec, symbols, [0, 2, 1], POSITIONS))
    assert emulator.alive == (0, 0, 0) and not caplog.records


def test_a_kernel_that_computes_something_else_is_replaced_loudly(
    emulator: Emulator, packed: Bundle, codec: TransformCodec, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is animated: the launch leaves the memory as it was."""
    symbols = symbols_of([1, 0])
    with caplog.at_level(logging.WARNING), open_decoder(packed, "cut", library=emulator.path) as decoder:
        assert decoder.why is not None and "the packed kernel errs by" in decoder.why
        got = decoder.decode(symbols, [1, 0], POSITIONS)
    assert "features of cut are decoded in numpy" in caplog.text
    assert np.array_equal(got, reference(codec, symbols, [1, 0], POSITIONS))
    assert emulator.alive == (0, 0, 0)
    with pytest.raises(UsageError, match="emulated Orin 0, allowed"):
        open_decoder(packed, "cut", strict=True, library=emulator.path)


def test_without_driver_kernels_or_architecture_numpy_decodes_and_says_why(
    emulator: Emulator, packed: Bundle, tmp_path: Path
) -> None:
    with open_decoder(packed, "cut", library="libnone.so") as decoder:
        assert decoder.why is not None and "no CUDA driver is here" in decoder.why
        assert decoder.decode([], [], POSITIONS).shape == (0, CHANNELS, *POSITIONS)
    with pytest.raises(DeviceError, match="no CUDA driver"):
        open_decoder(packed, "cut", strict=True, library="libnone.so")
    with Bundle.open(plain_bundle(tmp_path / "net.edgekit")) as plain:
        assert "holds no compiled kernels" in str(open_decoder(plain, "cut", library=emulator.path).why)
    emulator.device("sm_75")
    assert "needs sm_75" in str(open_decoder(packed, "cut", library=emulator.path).why)
    assert emulator.alive == (0, 0, 0)


def test_codecs_are_named(packed: Bundle) -> None:
    with pytest.raises(UnknownNameError, match="unknown transform codec 'cot'"):
        open_decoder(packed, "cot")


def test_a_failed_launch_is_no_proof(emulator: Emulator, packed: Bundle, codec: TransformCodec) -> None:
    animate(emulator, packed)
    with open_gpu(library=emulator.path) as gpu:
        assert self_check(RaggedDecoder(KernelSet(packed, gpu), codec)) == 0.0
    emulator.fail("cuLaunchKernel", 719)
    assert "cuLaunchKernel: unknown (719)" in str(open_decoder(packed, "cut", library=emulator.path).why)


def test_the_command_tries_the_packed_kernels_of_a_bundle(
    emulator: Emulator, packed: Bundle, packed_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CUDA_DRIVER", emulator.path)

    def run(code: int) -> Result:
        result = CliRunner().invoke(cli, ["kernels", "try", str(packed_path)])
        assert result.exit_code == code, result.output
        return result

    assert "errs by" in run(12).stderr
    animate(emulator, packed)
    told = run(0).stdout
    assert "On emulated Orin 0 (sm_87)" in told and [line.split() for line in told.splitlines() if "cut" in line] == [
        ["cut", "sm_87", "0", "yes"]
    ]
    emulator.device("sm_72")
    assert "it needs sm_72" in run(5).stderr
    monkeypatch.setenv("EDGEKIT_CUDA_DRIVER", "libnone.so")
    assert "no CUDA driver is here" in run(5).stderr
