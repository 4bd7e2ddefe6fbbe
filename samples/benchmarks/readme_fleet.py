"""README's rows on the fleet, from the results that the benchmarks left; `readme.py` writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = tuple[str, str, str, str]
Result = dict[str, Any]

NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}


def fleet(result: Result) -> list[Row]:
    agents, ingest, bad, delta = (
        result["parts"][part]["measured"] for part in ("agents", "ingest", "bad-bundle", "delta")
    )
    asked = "; ".join(
        f"{NAMES[kind]} {row['devices']:,}: p50 {row['latency_ms']['p50']:.0f}, p99 {row['latency_ms']['p99']:.0f} ms, "
        f"{sum(row['errors'].values())} errors, {row['lost_windows']} windows lost, {row['peak_mb']:.0f} MB "
        f"({row['service_cpu_ms_per_sync']:.2f} ms of the service a call)"
        for kind, row in agents.items()
    )
    taken = "; ".join(f"{NAMES[kind]} {row['windows_per_s']:,.0f}" for kind, row in ingest.items())
    ran = "; ".join(
        f"{how}: {row['ever_ran_it']} ran it, {row['back_by_themselves']} back by themselves"
        for how, row in bad.items()
    )
    row = result["interval_s"]
    return [
        (
            f"fleet: simulated agents that ask every {row:.0f} s with telemetry (two cores for all)",
            "p99 250 ms, 0 errors, 600 MB: PostgreSQL at 10,000, SQLite at 2,000",
            asked,
            "`-m samples.benchmarks.fleet --part agents`",
        ),
        ("telemetry taken in, windows a second", "5,000", taken, "`-m samples.benchmarks.fleet --part ingest`"),
        (
            "a bad bundle rolled out to 1,000 simulated devices, canary 1 %",
            "15 ever ran it; all back by themselves",
            ran,
            "`-m samples.benchmarks.fleet --part bad-bundle`",
        ),
        (
            f"update of one changed head in a {delta['bundle_bytes'] / 1e6:.0f} MB bundle, bytes on the wire over the "
            "head's",
            "1.1x",
            f"{delta['update_over_changed']:.2f}x (the whole archive {delta['whole_archive_over_changed']:.1f}x)",
            "`-m samples.benchmarks.fleet --part delta`",
        ),
    ]


def fleet_page(result: Result) -> list[Row]:
    told = []
    for kind, name in NAMES.items():
        if kind in result:
            pages = [row for row in result[kind].values() if "first_paint_ms" in row]
            slowest = max(pages, key=lambda row: row["first_paint_ms"])
            middle = sorted(row["first_paint_ms"] for row in pages)[len(pages) // 2]
            most = max(row["transferred_bytes"] for row in pages)
            told.append(
                f"{name}: {middle:.0f} ms in the median of {len(pages)} pages, {slowest['first_paint_ms']:.0f} at "
                f"most; {most / 1e3:.0f} kB at most"
            )
    return [
        (
            f"the fleet's page at {result['devices']:,} devices and {result['windows']:,} windows: first paint, bytes",
            "500 ms; 100 kB",
            "; ".join(told),
            "`-m samples.benchmarks.fleet_page`",
        )
    ]


SECTIONS: dict[str, Callable[[Result], list[Row]]] = {"fleet": fleet, "fleet_page": fleet_page}
