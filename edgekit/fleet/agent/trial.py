"""A bundle tried in a process of its own: whatever it does there, the agent and what runs go on.

python -m edgekit.fleet.agent.trial SLOT TIER    the child: answers the golden inputs, tells how close it came, as JSON
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.golden import closeness_db, read_golden
from edgekit.bundle.manifest import Preprocess, Tier
from edgekit.errors import EdgekitError

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Verdict:
    """`checked` golden inputs were answered, `right` of them close enough; `reason` says what went wrong, else "".
    `ms`: the median of an answer, by part."""

    checked: int
    right: int
    reason: str
    ms: dict[str, float]

    @property
    def is_right(self) -> bool:
        return not self.reason and self.checked > 0 and self.right == self.checked


def try_bundle(slot: Path, tier: Tier, timeout_s: float = TIMEOUT_S) -> Verdict:
    """In a child: one that crashes, hangs or eats all memory is a bundle that is refused."""
    command = [sys.executable, "-m", "edgekit.fleet.agent.trial", str(slot), tier]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(0, 0, f"it did not answer its golden inputs within {timeout_s:g} s", {})
    with contextlib.suppress(ValueError, IndexError, TypeError):
        return Verdict(**json.loads(done.stdout.splitlines()[-1]))
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return Verdict(0, 0, f"its process ended with {how}{f': {last}' if last else ''}"[:500], {})


def answer_golden(bundle: Bundle, tier: Tier) -> Verdict:
    """Every part of this tier that has golden answers."""
    from edgekit.runtimes.load import load

    manifest = bundle.manifest
    pixels = manifest.preprocess.pixels() if isinstance(manifest.preprocess, Preprocess) else None
    parts = {part.name for part in manifest.parts if part.tier == tier}
    checked, right, wrong, ms = 0, 0, "", {}
    for golden in manifest.golden:
        if golden.part not in parts:
            continue
        inputs, answers = read_golden(bundle.asset_path(golden.file).read_bytes(), pixels)
        laps = []
        with load(bundle, part=golden.part) as session:
            for feeds, wanted in zip(inputs, answers, strict=True):
                start = time.perf_counter()
                got = session.run(feeds)
                laps.append(1e3 * (time.perf_counter() - start))
                checked += 1
                found = closeness_db(wanted, got)
                right += found >= golden.least_sqnr_db
                if found < golden.least_sqnr_db and not wrong:
                    wrong = (
                        f"{golden.part} answers its golden inputs at {found:.1f} dB, allowed {golden.least_sqnr_db:g}"
                    )
        ms[golden.part] = sorted(laps)[len(laps) // 2]
    if not checked:
        wrong = f"it holds no golden answers for the tier {tier}"
    return Verdict(checked, right, wrong, ms)


def main() -> None:
    slot, tier = Path(sys.argv[1]), sys.argv[2]
    try:
        with Bundle.open(slot) as bundle:
            verdict = answer_golden(bundle, next(one for one in ("device", "edge", "cloud") if one == tier))
    except EdgekitError as error:
        verdict = Verdict(0, 0, error.message, {})
    sys.stdout.write(json.dumps(verdict.__dict__) + "\n")


if __name__ == "__main__":
    main()
