"""Against a real node in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.capacity.demand import Arrivals
from edgekit.capacity.overhead import measure_overhead, split_work
from edgekit.capacity.probe import Caller, Served, serving, spent_s
from edgekit.capacity.service import Service
from edgekit.errors import NodeError


@pytest.fixture(scope="module")
def part(whole_bundle: Path) -> Part:
    with Bundle.open(whole_bundle) as bundle:
        return bundle.manifest.part()


@pytest.fixture(scope="module")
def served(whole_bundle: Path) -> Iterator[Served]:
    with serving(whole_bundle, "edge", ("--threads", "1", "--queue", "4", "--max-batch", "2")) as node:
        yield node


def test_an_open_loop_gets_every_answer_at_an_easy_rate(served: Served, part: Part) -> None:
    with Caller(served, "small", part) as caller:
        caller.warm_up(3)
        rows, runs, spent = caller.counted()
        found = caller.send(Arrivals.poisson(40).at(50.0))
        after = caller.counted()
    assert np.isfinite(found.latency_ms).all() and (found.latency_ms > 0).all()
    assert found.refused == 0
    assert after[0] - rows == 40 and 1 <= after[1] - runs <= 40 and after[2] > spent
    assert sum(found.cpu_s) > 0


def test_what_a_full_node_refuses_counts_as_unanswered(served: Served, part: Part) -> None:
    with Caller(served, "small", part) as caller:
        caller.warm_up(3)
        found = caller.send(np.zeros(400) + 1e-3 * np.arange(400) / 400)
    # 400 at once are far more than 4 places, 2 rows and the node's spare ones take.
    assert found.refused > 0
    assert np.isinf(found.latency_ms).sum() == found.refused


def test_a_closed_loop_keeps_so_many_inside(served: Served, part: Part) -> None:
    with Caller(served, "small", part) as caller:
        caller.warm_up(3)
        found = caller.together(2, 0.3)
        alone = caller.alone(0.1)
    assert len(found.latency_ms) > 2 and found.refused == 0
    assert found.answered_hz == pytest.approx(len(found.latency_ms) / found.seconds)
    assert len(alone) >= 10 and (alone > 0).all()


def test_a_node_that_does_not_start_says_why(whole_bundle: Path) -> None:
    with pytest.raises(NodeError, match="max-bach") as caught, serving(whole_bundle, "edge", ("--max-bach", "2")):
        pass
    assert "edgekit serve" in caught.value.hint


def test_a_node_ends_with_its_context(whole_bundle: Path) -> None:
    with serving(whole_bundle, "edge", ()) as node:
        os.kill(node.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(node.pid, 0)


def test_time_is_told_by_thread_most_first() -> None:
    assert spent_s({1: 1.0, 2: 5.0}, {1: 1.5, 2: 7.0, 3: 0.25}) == [2.0, 0.5, 0.25]


def test_a_nodes_own_work_is_measured(whole_bundle: Path, part: Part) -> None:
    service = Service(0.0, 1e-5)
    found = measure_overhead(whole_bundle, "small", part, "edge", service, ("--threads", "1"), max_batch=8, seconds=0.5)
    # Between nothing and a second: what it is on this machine is no matter of right and wrong.
    assert 0 < found.request_s < 1
    assert 0 <= found.hop_s < 1 and 0 <= found.batch_s < 1
    assert "against a node" in found.origin


def test_work_by_the_batch_is_told_from_work_by_the_request() -> None:
    assert split_work([(1.0, 0.5), (4.0, 0.35)]) == (pytest.approx(0.3), pytest.approx(0.2))
    # One size, or noise that makes large batches dearer, tells nothing of batches.
    assert split_work([(1.0, 0.5)]) == (0.5, 0.0)
    assert split_work([(1.0, 0.5), (1.01, 0.4)]) == (0.5, 0.0)
    assert split_work([(1.0, 0.5), (4.0, 0.6)]) == (0.5, 0.0)


def test_a_node_ends_with_a_process_that_is_killed(whole_bundle: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgekit.capacity.probe import serving\n"
        f"with serving(Path({str(whole_bundle)!r}), 'edge', ('--threads', '1')) as node:\n"
        "    print(node.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        node = int(process.stdout.readline())
        assert _lives(node)
        process.kill()
    ends = time.monotonic() + 30
    while _lives(node) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _lives(node)


def _lives(pid: int) -> bool:
    """One that has ended may stay in the table where nobody asks for its code."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
