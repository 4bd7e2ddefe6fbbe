"""The probe's kernels: one small model for each kind of segment, and how fast this machine runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from edgekit.devices.onnx_bytes import Node, encode_model

# Long enough that a timer's resolution and a stray interrupt vanish, short enough for eleven kernels in 30 s.
KERNEL_SECONDS = 0.25
CHAIN = 200


@dataclass(frozen=True)
class Kernel:
    """`key` is "kind/precision"; `flops` are those of one run (bytes are small beside them)."""

    key: str
    flops: float
    model: bytes
    feeds: dict[str, np.ndarray]


def kernels() -> Iterator[Kernel]:
    """Matrix product, convolution, depthwise convolution, softmax, pooling and GELU's error function; float and
    int8 where ONNX Runtime has both."""
    yield _product("float32")
    yield _product("uint8")
    for name, (channels, size, groups) in {"conv": (64, 28, 1), "depthwise": (96, 56, 96)}.items():
        yield _convolution(name, channels, size, groups)
        yield _quantized_convolution(name, channels, size, groups)
    shape = (1, 64, 56, 56)
    elements = float(np.prod(shape))
    yield _unary("norm", "Softmax", (1, 12, 196, 196), 10.0 * 12 * 196 * 196, {"axis": 3})
    yield _unary("pool", "MaxPool", shape, 9 * elements, {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)})
    yield _unary("elementwise", "Erf", shape, 10 * elements, {})


def measure_rates(threads: int) -> dict[str, float]:
    """GFLOP/s by "kind/precision" in ONNX Runtime. Raises ImportError where it is not installed."""
    return {kernel.key: kernel.flops / _seconds(kernel.model, kernel.feeds, threads) / 1e9 for kernel in kernels()}


def measure_dispatch_us() -> float:
    """What one operator costs that does next to nothing: a chain of negations of one number."""
    names = [f"v{index}" for index in range(CHAIN + 1)]
    nodes = [Node("Neg", (before,), after) for before, after in pairwise(names)]
    model = encode_model(nodes, {}, {names[0]: ("float32", (1,))}, (names[-1], "float32", (1,)))
    return _seconds(model, {names[0]: np.ones(1, np.float32)}, 1, optimize=False) / CHAIN * 1e6


def best_seconds(call: Callable[[], object], budget_s: float) -> float:
    """The fastest of as many calls as fit into the budget, three at least: what nothing else disturbed."""
    call()
    best, start, count = float("inf"), time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < budget_s:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        count += 1
    return best


def _seconds(model: bytes, feeds: dict[str, np.ndarray], threads: int, *, optimize: bool = True) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return best_seconds(partial(session.run, None, feeds), KERNEL_SECONDS)


def _random(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Reproducible; floats of order one (denormals would be slow), integers over their whole range."""
    generator = np.random.default_rng(0)
    if dtype == "float32":
        return generator.standard_normal(shape).astype(np.float32)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def _product(dtype: str) -> Kernel:
    """A transformer's linear layer: 196 tokens, 384 -> 384."""
    rows, width = 196, 384
    operator, weight, out = (
        ("MatMul", "float32", "float32") if dtype == "float32" else ("MatMulInteger", "int8", "int32")
    )
    model = encode_model(
        [Node(operator, ("x", "w"), "y")],
        {"w": _random((width, width), weight)},
        {"x": (dtype, (rows, width))},
        ("y", out, (rows, width)),
    )
    key = "matmul/fp32" if dtype == "float32" else "matmul/int8"
    return Kernel(key, 2.0 * rows * width * width, model, {"x": _random((rows, width), dtype)})


def _convolution(kind: str, channels: int, size: int, groups: int) -> Kernel:
    shape = (1, channels, size, size)
    model = encode_model(
        [Node("Conv", ("x", "w"), "y", {"pads": (1, 1, 1, 1), "group": groups, "kernel_shape": (3, 3)})],
        {"w": _random((channels, channels // groups, 3, 3))},
        {"x": ("float32", shape)},
        ("y", "float32", shape),
    )
    return Kernel(f"{kind}/fp32", _taps(channels, size, groups), model, {"x": _random(shape)})


def _quantized_convolution(kind: str, channels: int, size: int, groups: int) -> Kernel:
    shape = (1, channels, size, size)
    unit, zero = np.array(0.02, np.float32), np.array(128, np.uint8)
    constants: dict[str, np.ndarray] = {
        "xs": unit, "xz": zero, "ys": np.array(1.0, np.float32), "yz": zero,
        "w": _random((channels, channels // groups, 3, 3), "int8"),
        "ws": unit, "wz": np.array(0, np.int8),
    }  # fmt: skip
    node = Node(
        "QLinearConv",
        ("x", "xs", "xz", "w", "ws", "wz", "ys", "yz"),
        "y",
        {"pads": (1, 1, 1, 1), "group": groups, "kernel_shape": (3, 3)},
    )
    model = encode_model([node], constants, {"x": ("uint8", shape)}, ("y", "uint8", shape))
    return Kernel(f"{kind}/int8", _taps(channels, size, groups), model, {"x": _random(shape, "uint8")})


def _taps(channels: int, size: int, groups: int) -> float:
    return 2.0 * channels * size * size * (channels // groups) * 9


def _unary(
    kind: str, operator: str, shape: tuple[int, ...], flops: float, attributes: Mapping[str, int | tuple[int, ...]]
) -> Kernel:
    model = encode_model(
        [Node(operator, ("x",), "y", attributes)], {}, {"x": ("float32", shape)}, ("y", "float32", shape)
    )
    return Kernel(f"{kind}/fp32", flops, model, {"x": _random(shape)})
