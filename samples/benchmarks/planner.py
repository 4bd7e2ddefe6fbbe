"""The planner: equal to brute force on 10,000 random graphs; seconds for graphs of 1,000 nodes and for their fronts.

Times are medians on one thread, by the wall and by the processor (the same where nothing else runs).

OMP_NUM_THREADS=1 python samples/benchmarks/planner.py
OMP_NUM_THREADS=1 python samples/benchmarks/planner.py --graphs 500 --limited 100 --no-save
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from common import environment, rounded, save

from edgekit.errors import PlanError
from edgekit.planning.bruteforce import brute_force
from edgekit.planning.choose import choose, front, plans
from edgekit.planning.frontier import frontier, useful_cuts
from edgekit.planning.graph import LayeredGraph, chain
from edgekit.planning.limits import best_partition
from edgekit.planning.link import Link
from edgekit.planning.mincut import unlimited
from edgekit.planning.plan import Crossing, Links, Objective, PlanLimits, Power, RateCost, StageCost, Way
from edgekit.planning.random_graph import random_graph, random_links
from edgekit.planning.terms import FIGURES

POWER = Power(compute_w=7.4, radio_w=1.3, idle_w=0.2)
TOLERANCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000, help="random graphs without limits")
    parser.add_argument("--limited", type=int, default=1_000, help="random graphs with limits")
    parser.add_argument("--nodes", type=int, default=1_000, help="of the large graphs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    result = {
        "environment": environment(1, ("scipy", "numpy")),
        "equal_to_brute_force": against_brute_force(options.graphs),
        "equal_to_brute_force_under_limits": under_limits(options.limited),
        "large_graphs": large_graphs(options.nodes, options.repeats),
        "choice_among_ways": choice_among_ways(options.repeats),
    }
    print(rounded(result))
    if not options.no_save:
        print(save("planner", rounded(result)))


def against_brute_force(count: int) -> dict[str, Any]:
    """1 to 7 nodes, 1 to 3 tiers, one or two codings a value, with and without power, any weights."""
    rng, used, differing, worst = np.random.default_rng(0), Counter[str](), 0, 0.0
    for _ in range(count):
        tiers = int(rng.integers(1, 4))
        graph, links = random_graph(rng, int(rng.integers(1, 8 if tiers < 3 else 7)), tiers), random_links(rng, tiers)
        power = Power(*rng.uniform(0, 3, 3).tolist()) if rng.random() < 0.5 else None
        objective = Objective(*rng.uniform(0, 1, 3).tolist()) if rng.random() < 0.5 else Objective()
        found, best = unlimited(graph, links, objective, power), brute_force(graph, links, objective, power=power)
        assert best is not None
        off = abs(found.cost - best.cost) / max(best.cost, 1e-9)
        worst, differing = max(worst, off), differing + (off > TOLERANCE)
        used["+".join(str(tier) for tier in sorted(set(found.tier_of)))] += 1
    return {"graphs": count, "differing": differing, "largest_relative_difference": worst, "tiers_used": dict(used)}


def under_limits(count: int) -> dict[str, Any]:
    """2 to 5 nodes, 2 or 3 tiers, up to three codings a value, one to three limits."""
    rng, seen, differing, worst = np.random.default_rng(1), Counter[str](), 0, 0.0
    for _ in range(count):
        tiers = int(rng.integers(2, 4))
        graph, links = random_graph(rng, int(rng.integers(2, 6)), tiers, codings=3), random_links(rng, tiers)
        ends = [unlimited(graph, links, each, POWER) for each in (Objective(), Objective(0, 1, 0), Objective(0, 0, 1))]
        limits = {}
        for name in rng.choice(FIGURES, int(rng.integers(1, 4)), replace=False).tolist():
            figures = [getattr(end, name) for end in ends]
            low, high = (0.0, 1.5) if name == "drop" else (0.9 * min(figures), 1.05 * max(figures))
            limits[name] = float(rng.uniform(low, high))
        best = brute_force(graph, links, limits=PlanLimits(**limits), power=POWER)
        try:
            found = best_partition(graph, links, limits=PlanLimits(**limits), power=POWER)
        except PlanError:
            seen["impossible"] += 1
            differing += best is not None
            continue
        off = 1.0 if best is None else abs(found.cost - best.cost) / max(best.cost, 1e-9)
        worst, differing = max(worst, off), differing + (off > 3 * TOLERANCE)
        seen["limits bind" if found.cost > ends[0].cost * (1 + TOLERANCE) else "limits leave it free"] += 1
    return {"graphs": count, "differing": differing, "largest_relative_difference": worst, "kinds": dict(seen)}


def large_graphs(nodes: int, repeats: int) -> dict[str, Any]:
    """Three tiers; three shapes under three links each; seconds from the graph to the partitions."""
    rng = np.random.default_rng(2)
    shapes: dict[str, LayeredGraph] = {
        "chain": _chain(rng, nodes),
        "narrow (reach 5)": random_graph(rng, nodes, 3, codings=3, reach=5),
        "wide (reach 30)": random_graph(rng, nodes, 3, codings=3, reach=30),
    }
    found: dict[str, Any] = {}
    for shape, graph in shapes.items():
        for link in (Link(1, 20), Link(20, 10), Link(300, 5)):
            links = [link, Link(1000, 5)]
            partition = unlimited(graph, links, power=POWER)
            found[f"{shape}, {link}"] = {
                "nodes_by_tier": np.bincount(partition.tier_of, minlength=3).tolist(),
                "relative_gap": (partition.cost - partition.lower_bound) / partition.cost,
                "plan": _median_ms(lambda: unlimited(graph, links, power=POWER), repeats),  # noqa: B023
                **_fronts(graph, links, max(3, repeats // 2)),
            }
        grid = [[Link(bandwidth, 10), Link(1000, 5)] for bandwidth in np.geomspace(0.1, 300, 20).tolist()]
        start = time.perf_counter()
        cuts = useful_cuts(graph, grid)
        found[f"{shape}, 20 links"] = {"useful_cuts": len(cuts), "seconds": time.perf_counter() - start}
    rows = [row for row in found.values() if "plan" in row]
    summary: dict[str, Any] = {"nodes": nodes}
    for clock in ("wall_ms", "cpu_ms"):
        summary[f"median_plan_{clock}"] = statistics.median(row["plan"][clock] for row in rows)
        summary[f"slowest_plan_{clock}"] = max(row["plan"][clock] for row in rows)
        summary[f"slowest_front_{clock}"] = max(
            value[clock] for row in rows for key, value in row.items() if key.endswith("front")
        )
    return {**summary, "cases": found}


def _fronts(graph: LayeredGraph, links: list[Link], repeats: int) -> dict[str, Any]:
    axes = {
        "latency_bytes": ("latency_ms", "bytes_sent"),
        "latency_drop": ("latency_ms", "drop"),
        "latency_bytes_energy": ("latency_ms", "bytes_sent", "energy_mj"),
    }
    row: dict[str, Any] = {}
    for name, chosen in axes.items():
        row[f"{name}_points"] = len(frontier(graph, links, chosen, POWER))
        row[f"{name}_front"] = _median_ms(lambda: frontier(graph, links, chosen, POWER), repeats)  # noqa: B023
    return row


def choice_among_ways(repeats: int) -> dict[str, Any]:
    """What the run side does before a request: six ways, one on the device, the others with sixteen rates each."""
    ladder = tuple(RateCost(12_000 * 0.8**index, 0.1 * index) for index in range(16))
    ways = [Way("whole", (StageCost("main", "device", 30.0, 220.0),))]
    for index in range(5):
        head = StageCost(f"head {index}", "device", 3.0 + 2 * index, 22.0 + 15 * index)
        crossing = Crossing(f"c{index}", ("device", "edge"), ladder, 0.6, 0.4)
        ways.append(Way(f"split {index}", (head, StageCost(f"tail {index}", "edge", 5.0)), (crossing,), 4_000))
    links: Links = {("device", "edge"): Link(10, 20)}
    limits = PlanLimits(drop=0.6)
    return {
        "plans": len(plans(ways, links, POWER)),
        "choose": _median_ms(lambda: choose(ways, links, limits=limits, power=POWER), 50 * repeats),
        "front": _median_ms(lambda: front(plans(ways, links, POWER)), 20 * repeats),
    }


def _chain(rng: np.random.Generator, nodes: int) -> LayeredGraph:
    """A network's shape: features shrink along the way, work is even."""
    device = rng.exponential(0.2, nodes)
    times = [(float(t), float(t) / 6, float(t) / 12) for t in device]
    sizes = 6e5 * np.exp(-5 * np.arange(nodes - 1) / nodes) * rng.lognormal(0, 0.7, nodes - 1)
    return chain(times, sizes.tolist(), 4_000)


def _median_ms(call: Callable[[], object], repeats: int) -> dict[str, float]:
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - starts[0]))
        cpu.append(1e3 * (time.process_time() - starts[1]))
    return {"wall_ms": statistics.median(wall), "cpu_ms": statistics.median(cpu)}


if __name__ == "__main__":
    main()
