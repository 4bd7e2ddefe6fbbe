"""Rolling updates and killed replicas under load, on Ray: requests lost, wrong, late, sent again by the proxy.

    python -m samples.benchmarks.rolling

Ray listens on every interface, so that the scene plays in network and process namespaces of its own; where those are
not allowed it says so and ends.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from samples.benchmarks.common import environment, no_options, rounded, save
from samples.benchmarks.namespace import run_isolated, why_not
from samples.benchmarks.rolling_scene import Plan

PLAN = Plan(callers=8, steady_s=10.0, kills=3, limit_s=500.0)


def measure() -> dict[str, Any]:
    """Raises RuntimeError where the scene does not come to its end."""
    command = [sys.executable, "-m", "samples.benchmarks.rolling_scene", json.dumps(asdict(PLAN))]
    code, out, err = run_isolated(command, PLAN.limit_s + 60, cwd=Path(__file__).resolve().parents[2])
    if code:
        raise RuntimeError(f"the scene ended with {code}:\n{err[-2000:]}")
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def main() -> None:
    no_options(__doc__)
    reason = why_not()
    if reason is not None:
        raise SystemExit(reason)
    result = rounded(measure())
    print(f"up after {result['up_s']} s, rolled over in {result['update_s']} s")
    for phase in result["phases"]:
        counts = " ".join(f"{name} {phase[name]}" for name in ("answered", "lost", "wrong", "late", "resent"))
        print(f"{phase['name']:16} {counts}  p50 {phase['p50_ms']} ms, p95 {phase['p95_ms']}, max {phase['max_ms']}")
    print("\nwritten:", save("rolling", {**environment(1, ("ray", "onnxruntime")), **result}))


if __name__ == "__main__":
    main()
