"""What a node costs: a hop over a bare server, throughput beside the bare runtime, memory over 100,000 requests.

python samples/benchmarks/server.py [--parts hop echo throughput memory]

Everything on one machine: node, bare server and client are processes, one thread a runtime. perf_analyzer is not among
the clients: the wheel of that name on PyPI (0.1.0) is a placeholder without a program.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from common import environment, rounded, save
from serving import (
    Process,
    adding_bundle,
    bare_grpc,
    bare_rest,
    cutting_bundle,
    node,
    random_input,
    scratch,
    zoo_bundle,
)

from edgekit.runtimes.load import load
from edgekit.runtimes.protocol.calls import InferCall, call_to_message
from edgekit.runtimes.protocol.messages import method_path
from edgekit.tensors import TensorSpec

ECHO = (38_400, 1_024)  # floats there and back
WIDTHS = {"24 B": 6, "30 KB": 7_680, "150 KB": 38_400}
ROUNDS, CALLS = 8, 250
CLIENTS = 24
KINDS, SETTINGS = ("bare", "node"), (1, 2, 8)  # the node's largest batches
BATCHES = (1, 2, 4, 8, 16)
REQUESTS, CHECK_EVERY = 100_000, 10_000


def open_infer(process: Process) -> Any:
    """ModelInfer on bytes, nothing of ours in the client."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(process.address, limits).unary_unary(method_path("ModelInfer"))


def request_bytes(model: str, tensor: str, array: np.ndarray) -> bytes:
    data: bytes = call_to_message(InferCall(model, {tensor: array})).SerializeToString()
    return data


def measure_hop(folder: Path) -> dict[str, Any]:
    """p50 of a call to the node and to a bare server with the same bytes there and back, in turns."""
    rows = {}
    for label, width in WIDTHS.items():
        bundle = adding_bundle(width, folder)
        request = request_bytes(f"add{width}.whole", "x", random_input(TensorSpec("x", "float32", ("n", width)), 1))
        with node(bundle) as served:
            to_node = open_infer(served)
            answer = to_node(request)
            with bare_grpc(len(answer)) as bare:
                rows[label] = _in_turns(partial(to_node, request), partial(open_infer(bare), request))
        rows[label] |= {"request_bytes": len(request), "answer_bytes": len(answer)}
    return rows


def measure_echo(folder: Path) -> dict[str, Any]:
    """150 KB there, 4 KB back, over each protocol: the node beside a bare server of the same library."""
    bundle, name = cutting_bundle(*ECHO, folder), f"cut{ECHO[0]}.whole"
    array = random_input(TensorSpec("x", "float32", ("n", ECHO[0])), 1)
    message = request_bytes(name, "x", array)
    body, headers = rest_body(array)
    with node(bundle) as served:
        grpc_node, rest_node = open_infer(served), open_rest(served.rest_url, f"/v2/models/{name}/infer", headers)
        answers = {"gRPC": grpc_node(message), "REST": rest_node(body)}
        with bare_grpc(len(answers["gRPC"])) as bare_g, bare_rest(len(answers["REST"])) as bare_r:
            grpc_bare, rest_bare = open_infer(bare_g), open_rest(bare_r.url, "/infer", headers)
            return {
                "gRPC": _in_turns(lambda: grpc_node(message), lambda: grpc_bare(message)),
                "REST": _in_turns(lambda: rest_node(body), lambda: rest_bare(body)),
                "request_bytes": {"gRPC": len(message), "REST": len(body)},
                "answer_bytes": {protocol: len(answer) for protocol, answer in answers.items()},
            }


def rest_body(array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """A request of the binary extension, and its headers."""
    tensor = {"name": "x", "shape": list(array.shape), "datatype": "FP32"}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return text + array.tobytes(), headers


def open_rest(url: str, path: str, headers: dict[str, str]) -> Callable[[bytes], bytes]:
    """POSTs on one connection that stays open, nothing of ours in the client."""
    connection = HTTPConnection(url.partition("://")[2])
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(body: bytes) -> bytes:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer

    return call


def _in_turns(node: Callable[[], object], bare: Callable[[], object]) -> dict[str, float]:
    """p50 of each in ms, and their difference."""
    calls, laps = {"node": node, "bare": bare}, {"node": [], "bare": []}  # type: ignore[var-annotated]
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                if turn:
                    laps[name].append(1e3 * (time.perf_counter() - start))
    p50 = {name: statistics.median(times) for name, times in laps.items()}
    return {"node_p50_ms": p50["node"], "bare_p50_ms": p50["bare"], "overhead_ms": p50["node"] - p50["bare"]}


def measure_throughput(folder: Path, rounds: int = 4, lap_s: float = 4.0) -> dict[str, Any]:
    """EfficientNet-Lite0 in float: bare `InferenceSession.run` at each batch size, and the node with single-row
    requests from many callers at each setting of its largest batch, in turns. Rows a second, and milliseconds of
    processor time a row, which other processes on the machine disturb less. The best of each are compared."""
    from edgekit.zoo.efficientnet import efficientnet_lite0

    bundle = zoo_bundle(efficientnet_lite0, folder)
    with load(bundle, threads=1) as session:
        spec = session.inputs[0]
        feeds = {size: {spec.name: random_input(spec, size)} for size in BATCHES}
        bare = {size: session.bare(feed) for size, feed in feeds.items()}
        rates: dict[str, list[tuple[float, float]]] = {}
        request = request_bytes(f"{bundle.stem}.whole", spec.name, feeds[1][spec.name])
        with ExitStack() as stack:
            calls = {}
            for size in SETTINGS:
                served = stack.enter_context(node(bundle, options=("--max-batch", str(size))))
                calls[f"node, batch {size}"] = (partial(open_infer(served), request), served)
            for call, _ in calls.values():
                call()
            for turn in range(rounds):
                measured = {f"bare, batch {size}": _repeat(call, size, 1.5) for size, call in bare.items()}
                measured |= {label: swarm(call, CLIENTS, lap_s, served) for label, (call, served) in calls.items()}
                for label, pair in measured.items() if turn else ():
                    rates.setdefault(label, []).append(pair)
    rows_per_s = {label: statistics.median(rate for rate, _ in pairs) for label, pairs in rates.items()}
    cpu_ms = {label: statistics.median(cost for _, cost in pairs) for label, pairs in rates.items()}
    best = {kind: max((x for x in rows_per_s if x.startswith(kind)), key=rows_per_s.__getitem__) for kind in KINDS}
    return {
        "rows_per_s": rows_per_s,
        "cpu_ms_per_row": cpu_ms,
        "best": best,
        "ratio_to_best_bare": rows_per_s[best["node"]] / rows_per_s[best["bare"]],
        "cpu_ms_more_than_best_bare": cpu_ms[best["node"]] - min(cpu_ms[x] for x in cpu_ms if x.startswith("bare")),
    }


def _repeat(call: Any, rows: int, seconds: float) -> tuple[float, float]:
    """Rows a second, back to back, and processor milliseconds a row."""
    count, start, spent = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        call()
        count += rows
    return count / (time.perf_counter() - start), 1e3 * (time.process_time() - spent) / count


def swarm(call: Any, callers: int, seconds: float, served: Process) -> tuple[float, float]:
    """Calls a second of many callers at once, from the moment that all are under way, and the node's processor
    milliseconds a call."""
    counts, stop = [0] * callers, threading.Event()

    def work(index: int) -> None:
        while not stop.is_set():
            call()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    before, spent, start = sum(counts), served.cpu_s, time.perf_counter()
    time.sleep(seconds)
    count, elapsed_s = sum(counts) - before, time.perf_counter() - start
    cpu_ms = 1e3 * (served.cpu_s - spent) / max(1, count)
    stop.set()
    for thread in threads:
        thread.join()
    return count / elapsed_s, cpu_ms


def measure_memory(folder: Path) -> dict[str, Any]:
    """Resident memory of the node while it answers REQUESTS tiny requests from four callers."""
    bundle = adding_bundle(6, folder)
    request = request_bytes("add6.whole", "x", np.zeros((1, 6), np.float32))
    with node(bundle) as served:
        infer = open_infer(served)
        seen, start = [], time.perf_counter()
        for done in range(CHECK_EVERY, REQUESTS + 1, CHECK_EVERY):
            threads = [
                threading.Thread(target=lambda: [infer(request) for _ in range(CHECK_EVERY // 4)]) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seen.append((done, served.memory_bytes))
        elapsed_s = time.perf_counter() - start
    grown = seen[-1][1] - seen[0][1]
    return {"requests": REQUESTS, "seconds": elapsed_s, "memory_bytes": dict(seen), "grown_after_first_10000": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"hop": measure_hop, "echo": measure_echo, "throughput": measure_throughput, "memory": measure_memory}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    result: dict[str, Any] = {}
    for part in parser.parse_args().parts:
        with scratch() as folder:
            result[part] = rounded(parts[part](folder))
        print(part, result[part], flush=True)
    if set(result) == set(parts):
        print(
            "written:", save("server", {**environment(1, ("onnxruntime", "grpcio", "protobuf", "uvicorn")), **result})
        )


if __name__ == "__main__":
    main()
