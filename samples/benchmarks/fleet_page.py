"""How quick the fleet's page is: time to the first contentful paint in Chromium, and bytes transferred.

    python -m samples.benchmarks.fleet_page [--devices N] [--windows N] [--database sqlite|postgresql] [--runs N]

Service, database and browser share this machine. Every load is by a browser with an empty cache, and finds nothing
that the service has kept from the load before. Bytes are those of the page with its style sheet and script, headers
included. The form of signing in reads nothing: what it takes is the browser's and the machine's share. A database
that is left out keeps what was measured before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, sync_playwright

from edgekit.fleet.service import FleetService
from edgekit.fleet.service.glance import FRESH_S
from samples.benchmarks.common import RESULTS, environment, rounded, save
from samples.benchmarks.fleet_bundle import make_bundle, matrix
from samples.benchmarks.fleet_processes import Served, cpu_s, postgresql, served
from samples.benchmarks.fleet_rows import BUNDLES, fill

CHROMIUM = Path("/usr/bin/chromium")
GOAL_MS, GOAL_BYTES = 500.0, 100_000
PAINT_S = 20.0
PAINT = "(performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime || 0"


@contextlib.contextmanager
def filled(database: str, devices: int, windows: int) -> Iterator[tuple[Served, dict[str, str]]]:
    """The service with all rows in, and name -> path of each page."""
    with contextlib.ExitStack() as stack:
        url = None
        if database == "postgresql":
            url, _ = stack.enter_context(postgresql())
        fleet = stack.enter_context(served(url))
        start = time.perf_counter()
        service = FleetService(fleet.folder / "data", url)
        try:
            fill(service, devices, windows)
        finally:
            service.close()
        print(f"{database}: {devices:,} devices and {windows:,} windows in {time.perf_counter() - start:.0f} s")
        with fleet.client() as client, tempfile.TemporaryDirectory() as folder:
            pushed = client.push(make_bundle(Path(folder) / "page.edgekit", "page", {"part": matrix(1, 1_000_000)}))
            rollout = client.rollouts().items[0]
            device = client.devices(selector="site=plant-01").items[0]
        yield (
            fleet,
            {
                "form of signing in": "/sign-in",
                "overview": "/",
                "groups": "/groups",
                "group": "/groups/plant-01",
                "devices": "/devices",
                "devices by label": "/devices?selector=board%3Drpi4,site%3Dplant-03&state=lost",
                "device": f"/devices/{device.name}?hours=6",
                "rollouts": "/rollouts",
                "rollout": f"/rollouts/{rollout.id}",
                "bundles": "/bundles",
                "bundle": f"/bundles/{pushed.digest}",
                "bundle that runs": f"/devices?running={BUNDLES[1][1]}",
                "audit log": "/audit",
            },
        )


def load(browser: Browser, base: str, path: str, state: Any) -> tuple[float, int, int]:
    """(ms to the first contentful paint, bytes of everything, bytes of the HTML)."""
    context = browser.new_context(storage_state=state, viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        kinds: dict[str, str] = {}
        sizes: dict[str, int] = {}
        session.on("Network.responseReceived", lambda event: kinds.update({event["requestId"]: event["type"]}))
        session.on(
            "Network.loadingFinished",
            lambda event: sizes.update({event["requestId"]: int(event["encodedDataLength"])}),
        )
        answer = page.goto(f"{base}{path}", wait_until="load")
        assert answer is not None and answer.status == 200, (path, answer)
        until, painted = time.monotonic() + PAINT_S, 0.0
        while not painted and time.monotonic() < until:
            painted = float(page.evaluate(PAINT))
        assert painted, f"{path} was not painted"
        html = sum(size for request, size in sizes.items() if kinds.get(request) == "Document")
        return painted, sum(sizes.values()), html
    finally:
        context.close()


def measure(browser: Browser, fleet: Served, pages: dict[str, str], runs: int) -> dict[str, Any]:
    """In turns through all pages, the first of which warms up."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{fleet.url}/sign-in")
    page.fill("#token", fleet.token)
    page.press("#token", "Enter")
    page.wait_for_url(f"{fleet.url}/")
    state = context.storage_state()
    context.close()
    laps: dict[str, list[tuple[float, int, int, float]]] = {name: [] for name in pages}
    for turn in range(runs + 1):
        for name, path in pages.items():
            time.sleep(FRESH_S + 0.1)
            before = cpu_s(fleet.process)
            found = load(browser, fleet.url, path, state)
            if turn:
                laps[name].append((*found, 1e3 * (cpu_s(fleet.process) - before)))
    return {
        name: {
            "first_paint_ms": statistics.median(lap[0] for lap in found),
            "slowest_ms": max(lap[0] for lap in found),
            "transferred_bytes": max(lap[1] for lap in found),
            "html_bytes": max(lap[2] for lap in found),
            "service_cpu_ms": statistics.median(lap[3] for lap in found),
        }
        for name, found in laps.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    path = RESULTS / "fleet_page.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= environment(2, ("fastapi", "jinja2", "sqlalchemy", "uvicorn", "playwright"))
    result |= {"devices": options.devices, "windows": options.windows, "runs": options.runs}
    result |= {"goal": {"first_paint_ms": GOAL_MS, "transferred_bytes": GOAL_BYTES}}
    for database in options.database or ("sqlite", "postgresql"):
        with filled(database, options.devices, options.windows) as (fleet, pages), sync_playwright() as started:
            browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            try:
                result["chromium"] = browser.version
                result[database] = measure(browser, fleet, pages, options.runs)
                result[database]["others_on_the_machine"] = {"load_average": os.getloadavg()[1]}
            finally:
                browser.close()
        for name, found in result[database].items():
            if "first_paint_ms" not in found:
                print(f"{database:>10}  {name}: {found}")
                continue
            print(
                f"{database:>10}  {name:<17} {found['first_paint_ms']:6.0f} ms, slowest {found['slowest_ms']:6.0f} ms, "
                f"{found['transferred_bytes'] / 1e3:6.1f} kB, of which HTML {found['html_bytes'] / 1e3:6.1f} kB, "
                f"service {found['service_cpu_ms']:4.0f} ms of a core"
            )
        print("written:", save("fleet_page", rounded(result)))


if __name__ == "__main__":
    main()
