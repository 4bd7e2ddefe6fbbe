"""A bundle in a process of its own: right, wrong, too slow, hanging, crashing, hungry, or for another machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.bundle import generate_key
from edgekit.bundle.manifest import Manifest
from edgekit.fleet.agent import machine, trial
from edgekit.fleet.agent.machine import MachineFacts, misfit, profile_of, read_machine
from edgekit.fleet.agent.trial import TrialLimits, try_bundle
from tests.fleet.agent.live import until
from tests.fleet.bundles import make_bundle

QUICK = TrialLimits(timeout_s=30.0)


def test_right_bundle_answers_its_golden_inputs(bundles: dict[str, Path]) -> None:
    verdict = try_bundle(bundles["old"], "device", limits=QUICK)
    assert verdict.is_right and (verdict.checked, verdict.right, verdict.reason) == (4, 4, "")
    assert verdict.ms["model"] > 0


def test_wrong_bundle_is_told_how_far_it_is_off(bundles: dict[str, Path]) -> None:
    verdict = try_bundle(bundles["wrong"], "device", limits=QUICK)
    assert not verdict.is_right and "dB, allowed 40 and more" in verdict.reason


def test_too_slow_a_bundle_is_told_by_how_much(bundles: dict[str, Path]) -> None:
    verdict = try_bundle(bundles["old"], "device", limits=TrialLimits(timeout_s=30.0, slowest_ms=1e-6))
    assert not verdict.is_right and verdict.reason.startswith("too slow: model ")


def test_server_answers_for_its_own_share(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "split", edge=True, as_directory=True)
    verdict = try_bundle(bundle, "edge", limits=QUICK)
    assert verdict.is_right and list(verdict.ms) == ["tail"]


def test_bundle_without_golden_answers_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bare", golden=False, as_directory=True)
    assert "no golden answers" in try_bundle(bundle, "device", limits=QUICK).reason


def test_damaged_bundle_is_known_as_such(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "net", as_directory=True)
    (bundle / "parts" / "model.onnx").write_bytes(b"something else")
    verdict = try_bundle(bundle, "device", limits=QUICK)
    assert verdict.damaged and not verdict.is_right


def test_bundle_of_another_signer_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    generate_key(tmp_path / "ours")
    generate_key(tmp_path / "theirs")
    keys = {name: next(tmp_path.glob(f"{name}*pub*")) for name in ("ours", "theirs")}
    secret = next(path for path in tmp_path.glob("ours*") if path != keys["ours"])
    bundle = make_bundle(tmp_path / "net", as_directory=True, sign_key=secret)
    assert try_bundle(bundle, "device", keys["ours"], QUICK).is_right
    verdict = try_bundle(bundle, "device", keys["theirs"], QUICK)
    assert verdict.reason and not verdict.damaged


CHILDREN = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "signal 11",
    "raise SystemExit('cannot be loaded')": "exit code 1: cannot be loaded",
    "print('verdict {\"checked\": 4}')": "exit code 0",
    "print('x' * (1 << 26)); raise SystemExit(3)": "exit code 3",
    "import resource, sys; data = bytearray(1 << 40)": "exit code 1: MemoryError",
}


@pytest.mark.parametrize("code", CHILDREN)
def test_bundle_that_breaks_its_process_is_told_how(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = try_child(code, tmp_path, monkeypatch, QUICK)
    assert not verdict.is_right and CHILDREN[code] in verdict.reason


def test_bundle_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    verdict = try_child(code, tmp_path, monkeypatch, TrialLimits(timeout_s=3.0))
    assert verdict.reason == "it did not answer its golden inputs within 3 s"
    pid = int((tmp_path / "pid").read_text())
    until(lambda: is_over(pid), "what it started has ended")


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def try_child(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: TrialLimits) -> trial.Verdict:
    """A child that does something else than the real one."""
    stand_in = tmp_path / "python"
    script = tmp_path / "child.py"
    script.write_text(code)
    stand_in.write_text(f'#!/bin/sh\nexec "{os.path.realpath("/proc/self/exe")}" "{script}"\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(stand_in))
    return try_bundle(tmp_path, "device", limits=limits)


def test_bundle_that_wants_more_memory_than_it_may_is_refused(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "GPUS", ())
    verdict = try_bundle(bundles["old"], "device", limits=TrialLimits(timeout_s=60.0, memory_share=0.002))
    assert not verdict.is_right and verdict.reason


def test_memory_is_not_bounded_where_a_driver_maps_more_than_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "GPUS", (str(tmp_path),))
    assert trial._memory_bytes(0.8) == 0
    monkeypatch.setattr(trial, "GPUS", ())
    assert trial._memory_bytes(0.8) > 1 << 20


def test_trial_is_below_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    monkeypatch.setattr(os, "nice", lambda by: seen.setdefault("nice", by))
    monkeypatch.setattr(trial.resource, "setrlimit", lambda what, limits: seen.setdefault("memory", limits[0]))
    monkeypatch.setattr(trial, "SCORE", tmp_path / "oom_score_adj")
    monkeypatch.setenv(trial.MEMORY, "1000000")
    trial._limit_oneself()
    assert seen == {"nice": trial.NICENESS, "memory": 1_000_000}
    assert (tmp_path / "oom_score_adj").read_text() == "1000"


def manifest(bundle: Path) -> Manifest:
    return Manifest.model_validate_json((bundle / "manifest.json").read_bytes())


def test_bundle_for_other_formats_is_told_before_it_is_opened(bundles: dict[str, Path]) -> None:
    parts = manifest(bundles["old"]).parts
    said = misfit("raspberry-pi-5", parts, ("litert", "executorch"), "aarch64")
    assert said == "it is made of onnx, and what runs here is litert, executorch"
    assert "what runs here is nothing" in misfit("raspberry-pi-5", parts, (), "aarch64")
    assert misfit("raspberry-pi-5", parts, ("onnx",), "x86_64") == ""  # onnx is compiled where it runs
    assert misfit("raspberry-pi-5", (), ("onnx",), "x86_64") == "it holds nothing for this tier"


def test_bundle_that_is_compiled_for_another_processor_is_told(bundles: dict[str, Path]) -> None:
    (part,) = manifest(bundles["old"]).parts
    compiled = [part.model_copy(update={"format": "inductor"})]
    said = misfit("raspberry-pi-5", compiled, ("inductor",), "x86_64")
    assert said == "it is compiled for aarch64 (raspberry-pi-5), and this is x86_64"
    assert misfit("raspberry-pi-5", compiled, ("inductor",), "aarch64") == ""
    assert misfit("my-own-board", compiled, ("inductor",), "x86_64") == ""


def test_board_is_known_by_its_own_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for said, profile in {
        "Raspberry Pi 4 Model B Rev 1.5\0": "raspberry-pi-4",
        "Raspberry Pi 5 Model B Rev 1.0\0": "raspberry-pi-5",
        "NVIDIA Jetson Orin Nano Developer Kit\0": "jetson-orin-nano",
        "Some other board\0": "",
    }.items():
        model.write_text(said)
        assert profile_of(model) == profile
    assert profile_of(tmp_path / "none") == ""


def test_machine_is_described_by_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_machine()
    assert "onnx" in found.formats and found.memory_bytes > 1 << 28
    monkeypatch.setattr("sys.executable", "/nonexistent")
    assert machine.read_machine() == MachineFacts()
