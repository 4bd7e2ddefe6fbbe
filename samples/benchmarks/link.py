"""The link emulator beside the link it stands for: request of so many bytes, answer of 8, on one open connection.

    python samples/benchmarks/link.py [--runs 9]

Ideal: half the round trip each way, and the bytes at full rate; the proxy adds its timers and its thread's turns. The
bare loopback stands beside it: what the same exchange costs without any link.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time
from typing import Any

from common import environment, rounded, save
from tcp_server import ANY, answering, dial, request, tcp_server

from edgekit.planning.link import Link
from edgekit.planning.traces import Conditions, Trace
from edgekit.runtimes.link.emulator import LinkEmulator

LINKS = (Link(1.0, 60.0), Link(10.0, 20.0), Link(10.0, 40.0), Link(100.0, 4.0), Link(1000.0, 0.2))
SIZES = (8, 1500, 15_000, 150_000)
ANSWER = 8
LONGEST_MS = 2000.0


def exchange_ms(connection: socket.socket, size_bytes: int) -> float:
    start = time.perf_counter()
    connection.sendall(request(size_bytes))
    connection.recv(ANSWER, socket.MSG_WAITALL)
    return 1e3 * (time.perf_counter() - start)


def steady(address: tuple[str, int], runs: int) -> list[dict[str, Any]]:
    rows = []
    for link in LINKS:
        with LinkEmulator(ANY, address, link) as emulator, dial((emulator.host, emulator.port)) as near:
            exchange_ms(near, 8)
            for size in SIZES:
                ideal = link.one_way_ms(size) + link.one_way_ms(ANSWER)
                count = max(3, min(runs, int(LONGEST_MS / ideal)))
                times = [exchange_ms(near, size) for _ in range(count)]
                rows.append(
                    {
                        "link": str(link),
                        "size_bytes": size,
                        "ideal_ms": ideal,
                        "p50_ms": statistics.median(times),
                        "late_ms": statistics.median(times) - ideal,
                        "runs": count,
                    }
                )
    return rows


def bare(address: tuple[str, int], runs: int) -> dict[str, float]:
    with dial(address) as near:
        exchange_ms(near, 8)
        return {str(size): statistics.median(exchange_ms(near, size) for _ in range(10 * runs)) for size in SIZES}


def through_an_outage(address: tuple[str, int], runs: int) -> dict[str, float]:
    """0.2 s up, 0.5 s down, up: when an exchange begun in the outage is answered, beside when it should be."""
    up, down = Conditions(10.0, 20.0), Conditions(10.0, 20.0, up=False)
    trace = Trace("gap", (0.0, 0.2, 0.7), (up, down, up), 10.0)
    late = []
    with LinkEmulator(ANY, address, up) as emulator, dial((emulator.host, emulator.port)) as near:
        exchange_ms(near, 8)
        for _ in range(min(runs, 5)):
            emulator.set(trace)
            began = time.perf_counter()
            time.sleep(0.3)
            exchange_ms(near, 1500)
            ideal_s = trace.arrival(trace.arrival(0.3, 1500), ANSWER)
            late.append(1e3 * (time.perf_counter() - began - ideal_s))
    return {"late_ms": statistics.median(late), "worst_ms": max(late)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = max(3, min(parser.parse_args().runs, 100))
    with tcp_server(answering(ANSWER)) as address:
        result = rounded(
            {
                "steady": steady(address, runs),
                "bare_loopback_ms": bare(address, runs),
                "outage": through_an_outage(address, runs),
            }
        )
    print(f"{'link':26} {'bytes':>8} {'ideal ms':>10}{'p50 ms':>10}{'late ms':>10}")
    for row in result["steady"]:
        figures = "".join(f"{row[name]:10.2f}" for name in ("ideal_ms", "p50_ms", "late_ms"))
        print(f"{row['link']:26} {row['size_bytes']:8} {figures}")
    print("bare loopback, p50 ms:", result["bare_loopback_ms"])
    print("after an outage, late by ms:", result["outage"])
    print("written:", save("link", {**environment(1, ()), **result}))


if __name__ == "__main__":
    main()
