"""README's rows on serving, from the results that the benchmarks left; `readme.py` writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = tuple[str, str, str, str]
Result = dict[str, Any]


def server(result: Result) -> list[Row]:
    hops = ", ".join(f"{size} +{row['overhead_ms']:.2f} ms" for size, row in result["hop"].items())
    echo = ", ".join(
        f"{name} +{result['echo'][name]['overhead_ms']:.2f} ms (bare {result['echo'][name]['bare_p50_ms']:.2f})"
        for name in ("gRPC", "REST")
    )
    memory = result["memory"]
    through = result["throughput"]
    return [
        ("a hop over bare gRPC with the same bytes, p50", "0.5 ms", hops, "`samples/benchmarks/server.py`"),
        (
            "150 KB there, 4 KB back, over a bare server of the same library, p50",
            "0.5 ms",
            echo,
            "`samples/benchmarks/server.py`",
        ),
        (
            "node: throughput at its best setting over the bare runtime's best batch; memory over 100,000 requests",
            "0.95x; flat",
            f"{through['ratio_to_best_bare']:.2f}x; +{memory['grown_after_first_10000'] / 1e6:.1f} MB after the first "
            f"10,000",
            "`samples/benchmarks/server.py`",
        ),
    ]


def loadgen(result: Result) -> list[Row]:
    found = result["scenarios"]
    text = "; ".join(
        f"{name} {row['samples_per_s']:.0f}/s, p99 {row['p99_ms']:.1f} ms, {row['loadgen']['Result is']}"
        for name, row in found.items()
    )
    return [("MLPerf LoadGen, unmodified (fashion-cnn)", "valid", text, "`samples/benchmarks/loadgen.py`")]


def overload(result: Result) -> list[Row]:
    rows = []
    for load, row in result["loads"].items():
        text = (
            f"goodput {row['goodput_of_capacity']:.2f}x of capacity ({result['capacity_per_s']:.0f}/s); p99 of the "
            f"answered {row['answered_p99_of_slo']:.2f}x the deadline; {row['refused']} of {row['sent']} refused, p50 "
            f"{row['refused_p50_ms']:.1f} ms, p99 {row['refused_p99_ms']:.1f} ms; {row['late']} late, {row['failed']} "
            f"failed; memory {row['memory_grown_mb']:+.0f} MB"
        )
        goal = "0.9x; 2x; 5 ms; flat" if load == "3x" else ""
        name = f"MiniLM at {load} of the node's capacity, deadline {result['slo_ms']:.0f} ms"
        rows.append((name, goal, text, "`samples/benchmarks/overload.py`"))
    return rows


def peer_server(result: Result) -> list[Row]:
    best = result["best"]
    text = f"{result['ratio']:.2f}x ({best['edgekit']:.0f}/s; MLServer {result['mlserver']} {best['MLServer']:.0f}/s)"
    name = (
        "EfficientNet-Lite0 over gRPC beside MLServer with the same file, each at its better setting: requests a second"
    )
    return [(name, "1.0x", text, "`samples/benchmarks/peer_server.py`")]


def mixed_rates(result: Result) -> list[Row]:
    rows = []
    for count in (key for key in result if key.endswith(" devices")):
        each = "; ".join(
            f"{where} {row['ratio']:.2f}x (batches of {row['rows_of_a_batch']['mixed']:.0f} and "
            f"{row['rows_of_a_batch']['by rate']:.1f} rows)"
            for where, row in result[count].items()
        )
        name = (
            f"{result['bundle']}, {result['tail']}, {count} on the trace lte: batches of mixed rates over one rate each"
        )
        rows.append((name, "1.5x", each, "`samples/benchmarks/mixed_rates.py`"))
    return rows


def rolling(result: Result) -> list[Row]:
    keys = ("answered", "lost", "wrong", "late", "resent")
    total = {key: sum(phase[key] for phase in result["phases"]) for key in keys}
    text = (
        f"{total['answered']:,} answered, {total['lost']} lost, {total['wrong']} wrong, {total['late']} late, "
        f"{total['resent']} sent again; rolled over in {result['update_s']:.0f} s"
    )
    return [
        (
            "Ray: a rolling update and three killed replicas under load",
            "0 lost, 0 wrong",
            text,
            "`-m samples.benchmarks.rolling`",
        )
    ]


def iterated(result: Result) -> list[Row]:
    rows = []
    for name in ("docstring-lm", "silero-vad"):
        row = result[name]
        rate = row["steps_per_s"]
        same = "the same to the bit" if row["bit_equal"] else "NOT the same"
        text = (
            f"{row['speedup']:.1f}x ({rate['together']:,.0f} steps/s; one by one {rate['one_at_a_time']:,.0f}); {same}"
        )
        title = f"{name}: {row['requests']} requests batched by the step, {row['slots']} slots"
        rows.append((title, "", text, "`-m samples.benchmarks.iterated`"))
    row = result["efficientnet-lite0"]
    rate = row["pictures_per_s"]
    text = f"{rate['node']:.0f}/s; `run` in a loop {rate['run']:.0f}/s; `--draft` {rate['node_draft']:.0f}/s"
    rows.append(("JPEGs of 1,600 pixels through a node", "", text, "`-m samples.benchmarks.iterated`"))
    return rows


def capacity(result: Result) -> list[Row]:
    rows = []
    for name, model in result["models"].items():
        of = {key: model[f"{key}_error_percent"] for key in ("throughput", "p95")}
        runs = sum(len(each) for each in model["settings"].values())
        text = "; ".join(
            f"{key} {errors['median']:.1f} % in the median, {errors['largest']:.1f} % at most"
            for key, errors in of.items()
        )
        title = f"{name}: simulated against measured, {runs} loads and settings"
        rows.append((title, "throughput 10 %, p95 20 %", text, "`samples/benchmarks/capacity.py`"))
    return rows


SECTIONS: dict[str, Callable[[Result], list[Row]]] = {
    "server": server,
    "peer_server": peer_server,
    "overload": overload,
    "mixed_rates": mixed_rates,
    "iterated": iterated,
    "rolling": rolling,
    "capacity": capacity,
    "loadgen": loadgen,
}
