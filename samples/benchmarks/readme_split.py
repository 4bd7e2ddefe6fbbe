"""README's rows on splitting, from the results that the benchmarks left; `readme.py` writes them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FASHION = Path(__file__).parents[2] / "edgekit/zoo/checkpoints/bottleneck-fashion-cnn-features_7.json"

Row = tuple[str, str, str, str]
Result = dict[str, Any]


def planner(result: Result) -> list[Row]:
    equal, limited, large = (
        result["equal_to_brute_force"],
        result["equal_to_brute_force_under_limits"],
        result["large_graphs"],
    )
    text = (
        f"{equal['differing']} of {equal['graphs']:,} differ, under limits {limited['differing']} of "
        f"{limited['graphs']:,}; plan {large['median_plan_wall_ms']:.0f} ms (slowest "
        f"{large['slowest_plan_wall_ms']:.0f}), front {large['slowest_front_wall_ms'] / 1e3:.2f} s at the slowest"
    )
    name = "planner: against brute force on random DAGs; 1,000 nodes and 3 tiers"
    return [(name, "equal; 100 ms, 1 s", text, "`samples/benchmarks/planner.py`")]


def bottleneck(result: Result) -> list[Row]:
    rows = []
    for cut, found in result["cuts"].items():
        for kind in ("training-free", "learned"):
            if kind not in found:
                continue
            parts = [
                f"{name} {'; '.join(_rungs(found[kind], name))}; JPEG {_ratio(found, kind, name)}"
                for name in result["samples"]
            ]
            share = found.get(f"{kind}_head_parameters", found["head_parameters"]) / 4_652_008
            rows.append(
                (
                    f"EfficientNet-Lite0 at {cut}, {kind} (head {100 * share:.1f} % of weights): bytes, agreement",
                    ".95 at 1.5 kB, .90 at 700 B; JPEG 6x",
                    ". ".join(parts),
                    "`-m samples.benchmarks.bottleneck`",
                )
            )
    return [*rows, *fashion_bottleneck()]


def _rungs(rows: Sequence[Result], name: str) -> list[str]:
    """The best within the two sizes of the goal, and the coarsest that keeps .80."""
    told = []
    for limit in (1500, 700):
        within = [row[name] for row in rows if row[name]["bytes"] <= limit]
        if within:
            best = max(within, key=lambda one: (one["agreement"], -one["bytes"]))
            told.append(f"{best['bytes']:.0f} B {best['agreement']:.3f}")
    return told


def _ratio(found: Result, kind: str, name: str) -> str:
    """`jpeg_over_KIND`: the least ratio of JPEG's bytes over ours at an agreement that both reach."""
    value = found[f"jpeg_over_{kind}"]
    value = value.get(name) if isinstance(value, dict) else value
    return "not comparable" if value is None else f"{value:.1f}x"


def fashion_bottleneck() -> list[Row]:
    """From the checkpoint's own record: its training script measures all 10,000 test images as its last step."""
    record = json.loads(FASHION.read_text(encoding="utf-8"))
    found = record["results"]
    losses = "; ".join(f"{row['bytes']:.0f} B {_lost(found, row)}" for row in found["rates"])
    alone = "; ".join(f"{row['bytes']:.0f} B {row['points_ahead']:+.2f}" for row in found["single"])
    name = (
        f"Fashion-MNIST at {record['cut']}, learned with labels, 10,000 images: bytes -> points lost; points that one "
        "trained for that rate alone is ahead"
    )
    command = f"`{record['command'].removeprefix('python ').replace(' --work WORK', '')}`"
    return [(name, "0.6 at 150 B; 0.3", f"{losses}. Alone: {alone}", command)]


def _lost(found: Result, row: Result) -> str:
    return f"{100 * (found['accuracy'] - row['accuracy']):+.2f}"


def codecs(result: Result) -> list[Row]:
    rows = result["rows"]
    text = "; ".join(
        f"{name} {_slowest(by_rate, 'encode_ms')} / {_slowest(by_rate, 'decode_ms')}" for name, by_rate in rows.items()
    )
    name = "codecs, 30 KB feature: slowest encode / decode in ms; frame header"
    return [(name, "1 / 1 ms; 48 B", f"{text}; {result['frame_bytes']} B", "`samples/benchmarks/codecs.py`")]


def _slowest(by_rate: Result, key: str) -> str:
    return f"{max(row[key] for row in by_rate.values()):.2f}"


def faults(result: Result) -> list[Row]:
    total = result["total"]
    text = (
        f"{total['lost']} lost, {total['wrong']} wrong, {total['twice']} twice, {total['late']} late; "
        f"{total['edge']:,} by the edge, {total['degraded']:,} here; {total['faults']} faults, "
        f"deadline {result['deadline_ms']:.0f} ms"
    )
    return [(f"{total['requests']:,} requests under faults", "0, 0, 0, 0", text, "`samples/benchmarks/faults.py`")]


def policies(result: Result) -> list[Row]:
    traces, overall = result["virtual"]["traces"], result["virtual"]["overall_ms"]
    regrets = ", ".join(f"{name} {100 * row['edgekit']['regret']:.1f} %" for name, row in traces.items())
    behind = max(row["behind_best_single"] for row in traces.values())
    others = ", ".join(f"{name} {overall[name]:.1f}" for name in ("local", "offload-jpeg", "neurosurgeon", "oracle"))
    command = "`samples/benchmarks/policies.py`"
    rows = [
        ("coordinated latency, regret against the per-request oracle (virtual time)", "10 % on each", regrets, command),
        (
            "behind the best single policy at most; mean over all traces in ms",
            "5 %; ahead of all three",
            f"{100 * behind:+.1f} %; edgekit {overall['edgekit']:.1f}, {others}",
            command,
        ),
    ]
    if "plans" in result:
        plans = result["plans"]
        paced = statistics.median(row["times_paced_bound"] for row in plans)
        strict = statistics.median(row["times_bound"] for row in plans)
        rows.append(
            (
                "predicted against measured latency of plans, median error; measured over the bound, median "
                "(device at its emulated pace; at its roofline)",
                "15 %; 1.5x",
                f"{100 * result['median_error']:.1f} % over {len(plans)} plans; {paced:.2f}x; {strict:.2f}x",
                command,
            )
        )
    return rows


def split_vit(result: Result) -> list[Row]:
    command, rows = "`-m samples.benchmarks.split_vit`", []
    found = result["fashion-vit"]
    for cut, kinds in found["cuts"].items():
        told = []
        for name, kind in kinds.items():
            fitting = [row for row in kind["rates"] if row["points_lost"] <= 1.0]
            if not fitting:
                told.append(f"{name}: none")
                continue
            least = min(fitting, key=lambda row: row["bytes"])
            vectors = f"{least['vectors']} vectors, " if "vectors" in least else ""
            told.append(
                f"{name}: {vectors}{least['bytes']:.0f} B, {least['points_lost']:.2f} "
                f"({least['low']:.2f} to {least['high']:.2f})"
            )
        jpeg = found["pictures"]["JPEG 75"]["bytes"]
        told.append(f"the picture: PNG {found['png_bytes']:.0f} B, JPEG 75 {jpeg:.0f} B")
        name = f"fashion-vit split behind {cut}, {found['images']:,} labels: fewest bytes within a point (95 %)"
        rows.append((name, "k <= 16 tokens, 1 point", "; ".join(told), command))
    for row in result.get("pooled", ()):
        text = f"{row['points_lost']:.2f} points ({row['low']:.2f} to {row['high']:.2f}), {row['of_whole']:.2f}x the ms"
        rows.append((f"fashion-vit, {row['detail']}: points lost (95 %), latency", "-", text, command))
    for cut, rates in result.get("dinov2-small", {}).items():
        text = "; ".join(f"{row['vectors']} vectors {row['bytes']:.0f} B {row['cosine_mean']:.3f}" for row in rates)
        rows.append((f"dinov2-small split behind {cut}, closed form: feature cosine", "-", text, command))
    return rows


SECTIONS: dict[str, Callable[[Result], list[Row]]] = {
    "planner": planner,
    "bottleneck": bottleneck,
    "codecs": codecs,
    "policies": policies,
    "faults": faults,
    "split_vit": split_vit,
}
