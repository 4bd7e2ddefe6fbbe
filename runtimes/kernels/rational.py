"""A rational activation with coefficients for each group of channels, and its gradients without atomics.

    F(x) = P(x) / D(x)    P(x) = a_0 + a_1 x + .. + a_5 x^5,    D(x) = 1 + |Q(x)|,    Q(x) = b_1 x + .. + b_4 x^4

    x  float32, bf16 or fp16 [N, C]     a  float32 [G, 6]     b  float32 [G, 4]     ->  F of x's type [N, C]

Channel c is of group floor(c G / C), G divides C. No pole: D is at least 1. With g the gradient of F and s = sign Q:

    dx = g (P' / D - s F Q' / D)      da_i = sum of g x^i / D      db_j = -sum of g s F x^j / D      over the group

All in float32, and divided before it is multiplied: with coefficients near 1 an |x| of 10^7 stays finite. A program
adds up its tiles in registers, one sum for each coefficient and lane, and its lanes once at the end: [G, programs, 10]
goes to memory and is added there. No atomics, the same bits at every run. (Safe Pade units: arXiv:1907.06732; groups of
channels: KAT, arXiv:2409.10594; sums inside a block before memory sees them: FlashKAT, arXiv:2505.13813.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.tiles import narrow

UPPER, LOWER = 6, 4  # coefficients above and below
PROGRAMS, TILES = 256, 4  # in the backward pass: of one group at most, and tiles of each at least
FORWARD_FLOPS, BACKWARD_FLOPS = 20, 64  # of an element


def rational(x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """F of each element, with gradients to x [..., C], `upper` [G, 6] and `lower` [G, 4]. Raises UsageError."""
    groups = len(upper)
    if upper.shape != (groups, UPPER) or lower.shape != (groups, LOWER) or not groups or x.shape[-1] % groups:
        raise UsageError(
            f"coefficients {list(upper.shape)} and {list(lower.shape)} for {x.shape[-1]} channels, "
            f"allowed [G, {UPPER}] and [G, {LOWER}] with G a divisor of the channels"
        )
    found: Tensor = _Rational.apply(x.reshape(-1, x.shape[-1]), upper, lower)
    return found.reshape(x.shape)


class _Rational(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
        ctx.save_for_backward(x, upper, lower)
        found: Tensor = call(FORWARD, x, upper, lower)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = call(BACKWARD, *ctx.saved_tensors, *gradients)
        return found


def _parts(x: Tensor, upper: Tensor, lower: Tensor) -> tuple[Tensor, ...]:
    """x as [N, G, C / G] in float32 or float64, P, Q, P' and Q' there."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (len(upper), -1))
    a, b = upper[:, None].unbind(2), lower[:, None].unbind(2)
    p, p_slope = a[5], 5 * a[5]
    for power in (4, 3, 2, 1):
        p, p_slope = p * wide + a[power], p_slope * wide + power * a[power]
    q, q_slope = b[3], 4 * b[3]
    for power in (3, 2, 1):
        q, q_slope = q * wide + b[power - 1], q_slope * wide + power * b[power - 1]
    return wide, p * wide + a[0], q * wide, p_slope, q_slope


def _forward_reference(x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    _, p, q, _, _ = _parts(x, upper, lower)
    return (p / (1 + q.abs())).flatten(1).to(x.dtype)


def _backward_reference(x: Tensor, upper: Tensor, lower: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    wide, p, q, p_slope, q_slope = _parts(x, upper, lower)
    over = 1 / (1 + q.abs())
    y, g = p * over, gradient.to(wide.dtype).unflatten(1, (len(upper), -1))
    dx = g * (p_slope * over - q.sign() * y * (q_slope * over))
    term, sums = g * over, []
    for _ in range(UPPER):
        sums.append(term.sum((0, 2)))
        term = term * wide
    term = -g * q.sign() * y * over * wide
    for _ in range(LOWER):
        sums.append(term.sum((0, 2)))
        term = term * wide
    both = torch.stack(sums, 1).to(upper.dtype)
    return dx.flatten(1).to(x.dtype), both[:, :UPPER].contiguous(), both[:, UPPER:].contiguous()


@triton.jit
def _forward_kernel(
    x, upper, lower, y, count, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    a, b = upper + group * 6, lower + group * 4
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    at = (element // WIDTH).to(tl.int64) * CHANNELS + group * WIDTH + element % WIDTH
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    p = tl.load(a + 5) * v + tl.load(a + 4)
    p = (p * v + tl.load(a + 3)) * v + tl.load(a + 2)
    p = (p * v + tl.load(a + 1)) * v + tl.load(a)
    q = (tl.load(b + 3) * v + tl.load(b + 2)) * v + tl.load(b + 1)
    q = (q * v + tl.load(b)) * v
    tl.store(y + at, narrow(p / (1 + tl.abs(q)), y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    x, upper, lower, gradient, dx, partial, count, programs,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, program = tl.program_id(1), tl.program_id(0)
    a, b = upper + group * 6, lower + group * 4
    a0, a1, a2, a3, a4, a5 = tl.load(a), tl.load(a + 1), tl.load(a + 2), tl.load(a + 3), tl.load(a + 4), tl.load(a + 5)
    b1, b2, b3, b4 = tl.load(b), tl.load(b + 1), tl.load(b + 2), tl.load(b + 3)
    none = tl.zeros([BLOCK], tl.float32)
    s0, s1, s2, s3, s4, s5 = none, none, none, none, none, none
    t1, t2, t3, t4 = none, none, none, none
    for first in range(program * BLOCK, count, programs * BLOCK):
        element = first + tl.arange(0, BLOCK)
        inside = element < count
        at = (element // WIDTH).to(tl.int64) * CHANNELS + group * WIDTH + element % WIDTH
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        p = ((((a5 * v + a4) * v + a3) * v + a2) * v + a1) * v + a0
        p_slope = (((5 * a5 * v + 4 * a4) * v + 3 * a3) * v + 2 * a2) * v + a1
        q = (((b4 * v + b3) * v + b2) * v + b1) * v
        q_slope = ((4 * b4 * v + 3 * b3) * v + 2 * b2) * v + b1
        sign = (q > 0).to(tl.float32) - (q < 0).to(tl.float32)
        over = 1 / (1 + tl.abs(q))
        y = p * over
        slope = g * (p_slope * over - sign * y * (q_slope * over))
        tl.store(dx + at, narrow(slope, dx.dtype.element_ty), mask=inside)
        term, square = g * over, v * v
        low = -sign * y * term * v
        s0, s1, t1, t2 = s0 + term, s1 + term * v, t1 + low, t2 + low * v
        term, low = term * square, low * square
        s2, s3, t3, t4 = s2 + term, s3 + term * v, t3 + low, t4 + low * v
        term *= square
        s4, s5 = s4 + term, s5 + term * v
    sums = (s0, s1, s2, s3, s4, s5, t1, t2, t3, t4)
    for which in tl.static_range(10):
        tl.store(partial + (group * programs + program) * 10 + which, tl.sum(sums[which]))


FORWARD_CONFIGS = (Config({"BLOCK": 1024}, warps=4, stages=1),)
BACKWARD_CONFIGS = (Config({"BLOCK": 512}, warps=4, stages=1),)


def _forward_launch(x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    (rows, channels), groups, (config,) = x.shape, len(upper), FORWARD_CONFIGS
    y, count = torch.empty_like(x, memory_format=torch.contiguous_format), rows * channels // groups
    if count:
        _forward_kernel[(triton.cdiv(count, config.constants["BLOCK"]), groups)](
            x.contiguous(), upper.float().contiguous(), lower.float().contiguous(), y, count,
            CHANNELS=channels, WIDTH=channels // groups, **config.constants,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def _backward_launch(x: Tensor, upper: Tensor, lower: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    (rows, channels), groups, (config,) = x.shape, len(upper), BACKWARD_CONFIGS
    dx, count = torch.empty_like(x, memory_format=torch.contiguous_format), rows * channels // groups
    programs = min(PROGRAMS, triton.cdiv(count, TILES * config.constants["BLOCK"]))
    partial = torch.empty(groups, programs, UPPER + LOWER, dtype=torch.float32, device=x.device)
    if count:
        _backward_kernel[(programs, groups)](
            x.contiguous(), upper.float().contiguous(), lower.float().contiguous(), gradient.contiguous(), dx, partial,
            count, programs, CHANNELS=channels, WIDTH=channels // groups, **config.constants,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    both = partial.sum(1).to(upper.dtype)
    return dx, both[:, :UPPER].contiguous(), both[:, UPPER:].contiguous()


def _forward_cost(x: Tensor, upper: Tensor, lower: Tensor) -> Cost:
    return Cost(float(FORWARD_FLOPS * x.numel()), float(2 * x.nbytes + upper.nbytes + lower.nbytes))


def _backward_cost(x: Tensor, upper: Tensor, lower: Tensor, gradient: Tensor) -> Cost:
    return Cost(float(BACKWARD_FLOPS * x.numel()), float(3 * x.nbytes + 2 * (upper.nbytes + lower.nbytes)))


def _scene(
    rows: int, width: int, groups: int, scale: float = 1.0, dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> tuple[Tensor, ...]:
    on: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(rows + width), "device": device}
    x, gradient = (torch.randn(rows, width * groups, **on) for _ in range(2))
    return (scale * x).to(dtype), torch.randn(groups, UPPER, **on), torch.randn(groups, LOWER, **on), gradient.to(dtype)


def _examples() -> Sequence[Example]:
    rounded = {
        "tolerance": 2.0**-7,
        "why": "one unit in the last place, where a result lies at the middle of two",
    }
    x, upper, lower, gradient = _scene(9, 4, 2)
    return [
        Example("odd", _scene(7, 5, 3)),
        Example("more than a tile", _scene(83, 31, 1)),
        Example("bf16", _scene(6, 7, 2, dtype=torch.bfloat16), **rounded),  # type: ignore[arg-type]
        Example("fp16", _scene(6, 7, 2, 0.5, torch.float16), 2.0**-10, str(rounded["why"])),
        Example("one element", _scene(1, 1, 1)),
        Example("no rows", _scene(0, 3, 2)),
        Example("zeros, where Q has no sign", (x * 0, upper, lower, gradient)),
        Example("a polynomial", (x, upper, lower * 0, gradient)),
        Example("large values", _scene(5, 6, 2, 1e7)),
        Example("small values", _scene(5, 6, 2, 1e-20)),
    ]


def _forward_examples() -> Sequence[Example]:
    return [Example(one.name, one.arguments[:3], one.tolerance, one.why) for one in _examples()]


def _load(device: torch.device) -> tuple[Any, ...]:
    """The hidden layer of a ViT-S for 128 images, in eight groups."""
    return _scene(128 * 197, 192, 8, dtype=torch.bfloat16, device=device)


def _entry(function: Any, kind: str, pointers: str, sizes: str, configs: Sequence[Config]) -> Entry:
    """For x of type `kind`; all arithmetic is in float32 whatever it is."""
    signature = {name: kind if name in ("x", "y", "gradient", "dx") else "*fp32" for name in pointers.split()}
    made = (Config({**one.constants, "CHANNELS": 1536, "WIDTH": 192}, one.warps, one.stages) for one in configs)
    return Entry(function, {**signature, **dict.fromkeys(sizes.split(), "i32")}, tuple(made))


KINDS = ("*bf16", "*fp16", "*fp32")

FORWARD = Kernel(
    name="rational",
    formula="F = P(x) / (1 + |Q(x)|), degrees 5 and 4, by groups of channels",
    source="FlashKAT, arXiv:2505.13813",
    reference=_forward_reference,
    launch=_forward_launch,
    cost=_forward_cost,
    examples=_forward_examples,
    load=lambda device: _load(device)[:3],
    entries=tuple(_entry(_forward_kernel, kind, "x upper lower y", "count", FORWARD_CONFIGS) for kind in KINDS),
)

BACKWARD = Kernel(
    name="rational-backward",
    formula="dx, and da, db summed inside each program",
    source="FlashKAT, arXiv:2505.13813",
    reference=_backward_reference,
    launch=_backward_launch,
    cost=_backward_cost,
    examples=_examples,
    load=_load,
    entries=tuple(
        _entry(_backward_kernel, kind, "x upper lower gradient dx partial", "count programs", BACKWARD_CONFIGS)
        for kind in KINDS
    ),
)
