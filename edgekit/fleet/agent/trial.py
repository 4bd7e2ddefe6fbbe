"""A bundle tried in a process of its own: whatever it does there, the agent and what runs go on.

python -m edgekit.fleet.agent.trial SLOT TIER [KEY]    the child: verifies, answers the golden inputs, tells as JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgekit.bundle.manifest import TIERS, Manifest, Part, Tier
from edgekit.errors import BundleError, EdgekitError, SignatureError
from edgekit.runtimes.lifeline import end_with_parent, start_tied

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.golden import Arrays

MARK = "verdict "
TAIL_BYTES = 64 << 10  # of what the child says, the last are kept: it may say more than there is memory
MEMORY = "EDGEKIT_TRIAL_MEMORY"  # what the child may take, in bytes
SCORE = Path("/proc/self/oom_score_adj")
GPUS = ("/dev/nvidia0", "/dev/nvmap", "/dev/nvhost-gpu")
NICENESS = 5  # below what runs, which must not suffer from what is tried


@dataclass(frozen=True)
class Verdict:
    """`checked` golden inputs were answered, `right` of them close enough; `reason` says what went wrong, else "".
    `ms`: the median of an answer, by part. `damaged`: the bytes on this disk are not the bundle's."""

    checked: int
    right: int
    reason: str
    ms: dict[str, float] = field(default_factory=dict)
    damaged: bool = False

    @property
    def is_right(self) -> bool:
        return not self.reason and self.checked > 0 and self.right == self.checked


@dataclass(frozen=True)
class TrialLimits:
    """`memory_share`: of the memory that is free when the trial begins. `slowest_ms`: an answer's median, of any
    part; None for no bound but the whole's."""

    timeout_s: float = 120.0
    memory_share: float = 0.8
    slowest_ms: float | None = None


def try_bundle(slot: Path, tier: Tier, key: Path | None = None, limits: TrialLimits = TrialLimits()) -> Verdict:
    """In a child: one that crashes, hangs or eats all memory is a bundle that is refused."""
    command = [sys.executable, "-m", "edgekit.fleet.agent.trial", str(slot), tier, *([str(key)] if key else [])]
    environment = os.environ | {MEMORY: str(_memory_bytes(limits.memory_share))}
    child = start_tied(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert child.stdout is not None
    tail = bytearray()
    reader = threading.Thread(target=_keep_tail, args=(child.stdout, tail), daemon=True)
    reader.start()
    try:
        code = child.wait(limits.timeout_s)
    except subprocess.TimeoutExpired:
        return Verdict(0, 0, f"it did not answer its golden inputs within {limits.timeout_s:g} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with whatever it started
        child.wait()
        reader.join(5)
        if child.stdin is not None:
            child.stdin.close()
    return _judge(code, tail.decode(errors="replace"), limits)


def _judge(code: int, said: str, limits: TrialLimits) -> Verdict:
    lines = said.strip().splitlines()
    told = next((line.removeprefix(MARK) for line in reversed(lines) if line.startswith(MARK)), "")
    with contextlib.suppress(ValueError, TypeError):
        verdict = Verdict(**json.loads(told))
        slow = [
            f"{part} {ms:.1f} ms" for part, ms in verdict.ms.items() if limits.slowest_ms and ms > limits.slowest_ms
        ]
        if verdict.is_right and slow:
            return Verdict(verdict.checked, 0, f"too slow: {', '.join(slow)}, allowed {limits.slowest_ms:g}")
        return verdict
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = (lines or [""])[-1]
    return Verdict(0, 0, f"its process ended with {how}{f': {last}' if last else ''}"[:500])


def _keep_tail(stream: IO[bytes], tail: bytearray) -> None:
    with stream:
        while chunk := os.read(stream.fileno(), 1 << 16):
            tail += chunk
            del tail[:-TAIL_BYTES]


def _memory_bytes(share: float) -> int:
    """0 for no bound: where the system does not tell what is free, and where a GPU is, whose driver maps far more than
    it uses. The kernel still ends the child before any other process when memory runs out."""
    if any(Path(device).exists() for device in GPUS):
        return 0
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(share * 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    return 0


def answer_golden(slot: Path, tier: Tier, key: Path | None) -> Verdict:
    """Every part of this tier that has golden answers."""
    from edgekit.bundle import Bundle
    from edgekit.devices.machine import this_machine
    from edgekit.fleet.agent.machine import look, misfit

    try:
        bundle = Bundle.open(slot, key)
    except SignatureError as error:
        return Verdict(0, 0, error.message)
    except BundleError as error:
        return Verdict(0, 0, error.message, damaged=True)
    with bundle:
        parts = parts_of(bundle.manifest, tier)
        unfit = misfit(bundle.manifest.device, parts, look().formats, this_machine().arch)
        return Verdict(0, 0, unfit) if unfit else _answer(bundle, tier, {part.name for part in parts})


def parts_of(manifest: Manifest, tier: Tier) -> list[Part]:
    """What runs on this tier. Raises NodeError where that is nothing, of a server."""
    if tier == "device":
        return [part for part in manifest.parts if part.tier == tier]
    from edgekit.runtimes.server.catalog import parts_for

    return parts_for(manifest, tier)


def _answer(bundle: Bundle, tier: Tier, parts: set[str]) -> Verdict:
    from edgekit.bundle.golden import read_golden
    from edgekit.bundle.manifest import Preprocess

    manifest = bundle.manifest
    pixels = manifest.preprocess.pixels() if isinstance(manifest.preprocess, Preprocess) else None
    checked, right, wrong, ms = 0, 0, "", {}
    for golden in manifest.golden:
        if golden.part not in parts:
            continue
        inputs, answers = read_golden(bundle.asset_path(golden.file).read_bytes(), pixels)
        closeness, ms[golden.part] = _run(bundle, golden.part, inputs, answers)
        checked += len(closeness)
        right += sum(one >= golden.least_sqnr_db for one in closeness)
        if min(closeness) < golden.least_sqnr_db and not wrong:
            wrong = (
                f"{golden.part} answers its golden inputs at {min(closeness):.1f} dB, "
                f"allowed {golden.least_sqnr_db:g} and more"
            )
    if not checked:
        wrong = f"it holds no golden answers for the tier {tier}"
    return Verdict(checked, right, wrong, ms)


def _run(bundle: Bundle, part: str, inputs: list[Arrays], answers: list[Arrays]) -> tuple[list[float], float]:
    """(closeness of each answer in dB, the median of an answer in ms)."""
    from edgekit.bundle.golden import closeness_db
    from edgekit.runtimes.load import load

    laps, closeness = [], []
    with load(bundle, part=part) as session:
        for feeds, wanted in zip(inputs, answers, strict=True):
            start = time.perf_counter()
            got = session.run(feeds)
            laps.append(1e3 * (time.perf_counter() - start))
            closeness.append(closeness_db(wanted, got))
    return closeness, sorted(laps)[len(laps) // 2]


def _limit_oneself() -> None:
    """So that the kernel ends this process first, and no other one for it."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        SCORE.write_text("1000")
    memory = int(os.environ.get(MEMORY, "0"))
    if memory > 0:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main() -> None:
    slot, tier, key = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None
    end_with_parent()
    _limit_oneself()
    try:
        verdict = answer_golden(slot, next(one for one in TIERS if one == tier), key)
    except EdgekitError as error:
        verdict = Verdict(0, 0, error.message)
    except MemoryError:
        verdict = Verdict(0, 0, "it needs more memory than there is")
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(verdict))}\n")


if __name__ == "__main__":
    main()
