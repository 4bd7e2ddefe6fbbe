"""A framework-free list of operators with their costs, and how runtimes fuse it into segments.

Only what every runtime fuses is fused here: batch norms, clamps and residual additions into the convolution or
product that feeds them. Transcendental activations (GELU, SiLU) stay kernels of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edgekit.devices.segment import Segment
from edgekit.quantization import Quantization

PRODUCERS = ("conv", "depthwise", "matmul")
WEIGHT_BITS = {
    "int8": 8,
    "int8-dynamic": 8,
    "int8-weight-only": 8,
    "int4-weight-only": 4,
    "w6a6": 8,
    "w4a8": 4,
    "mxfp4": 4.25,
    "fp16": 16,
}
STATIC = ("int8", "w6a6", "w4a8")
# What follows a layer's name where it is more than one segment: the pass that rounds its input, an attention's parts.
QUANTIZE, SCORES, SOFTMAX = PARTS = ("quantize", "scores", "softmax")
# Pooling and data movement run on integers where their input is integer; so does an addition or product.
INTEGER_FRIENDLY = ("pool", "movement", "elementwise")


@dataclass(frozen=True)
class Value:
    """An activation tensor: its number of elements, and their size where nothing is quantized."""

    elements: int
    element_bytes: int
    floating: bool

    @property
    def size_bytes(self) -> int:
        return self.elements * self.element_bytes


@dataclass(frozen=True)
class Step:
    """One of the kernels that an operator is written out as: `name` is empty for the last; `moved` elements cross
    memory, of the operator's own output type."""

    name: str
    kind: str
    flops: float
    moved: int


@dataclass(frozen=True)
class Operator:
    """`kind` as in Segment, "view" for what costs nothing, or "attention". `weight_elements` are constants read once.

    `absorbed`: its work can ride on the kernel that makes its input. `exact`: it maps integers to integers without
    a table (not so a GELU). `steps`: the kernels that make it up; () where it is one.
    """

    name: str
    kind: str
    flops: float
    inputs: tuple[str, ...]
    output: str
    weight_elements: int = 0
    absorbed: bool = False
    exact: bool = True
    steps: tuple[Step, ...] = ()

    @property
    def has_weights(self) -> bool:
        return self.weight_elements > 0 and self.kind in PRODUCERS


@dataclass(frozen=True)
class Program:
    """Operators in execution order; `values` by name; the names of inputs and outputs."""

    operators: tuple[Operator, ...]
    values: dict[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class _Group:
    """A kernel: its leading operator, what it reads in all, and what it leaves."""

    lead: Operator
    reads: list[str]
    output: str
    flops: float
    members: list[str] = field(default_factory=list)


def fuse(program: Program) -> list[_Group]:
    """The kernels, in order; views vanish, and what can be absorbed is."""
    source = _storage(program)
    uses = Counter(
        source[name] for operator in program.operators if operator.kind != "view" for name in operator.inputs
    )
    uses.update(source[name] for name in program.outputs)
    made_by: dict[str, _Group] = {}
    groups: list[_Group] = []
    for operator in program.operators:
        if operator.kind == "view":
            continue
        reads = [source[name] for name in operator.inputs]
        host = _host(operator, reads, made_by, uses)
        if host is None:
            host = _Group(operator, reads, operator.output, operator.flops, [operator.name])
            groups.append(host)
        else:
            made_by.pop(host.output)
            host.reads += [name for name in reads if name != host.output]
            host.output = operator.output
            host.flops += operator.flops
            host.members.append(operator.name)
        made_by[operator.output] = host
    return groups


def _host(operator: Operator, reads: list[str], made_by: dict[str, _Group], uses: Counter[str]) -> _Group | None:
    """The kernel that absorbs `operator`: the latest producer of an input that nobody else reads."""
    if not operator.absorbed:
        return None
    hosts = [made_by[name] for name in reads if name in made_by and uses[name] == 1]
    fitting = [host for host in hosts if host.lead.kind in PRODUCERS]
    return fitting[-1] if fitting else None


def _storage(program: Program) -> dict[str, str]:
    """Each value's name -> the value whose memory it shares (itself, unless a view made it)."""
    source = {name: name for name in program.values}
    for operator in program.operators:
        if operator.kind == "view" and operator.inputs:
            source[operator.output] = source[operator.inputs[0]]
    return source


def to_segments(program: Program, precision: str, record: Quantization | None) -> tuple[Segment, ...]:
    """`record` None: every layer that `precision` can quantize is taken to be quantized."""
    groups = fuse(program)
    integer_layers = _integer_layers(groups, precision, record)
    integer_values = _integer_values(program, groups, precision, record, integer_layers)
    kept = {fallback.layer for fallback in record.fallbacks} if record is not None else set()
    result: list[Segment] = []
    for group in groups:
        if group.lead.steps:
            result += _written_out(group.lead, program, half=precision == "fp16" and group.lead.name not in kept)
            continue
        if precision == "int8-dynamic" and group.lead.name in integer_layers:
            result.append(_quantize_input(group, program))
        result.append(_segment(group, program, precision, integer_layers, integer_values, kept))
    return tuple(result)


def operator_of(segment: str) -> str:
    """The name of the operator that leads a segment: an operator may be several segments."""
    name, _, part = segment.rpartition(".")
    return name if name and part in PARTS else segment


def _integer_layers(groups: list[_Group], precision: str, record: Quantization | None) -> frozenset[str]:
    """Names of the leading operators that compute in int8."""
    if precision not in (*STATIC, "int8-dynamic"):
        return frozenset()
    if record is not None:
        return frozenset(record.layers)
    kinds = PRODUCERS if precision in STATIC else ("matmul",)
    return frozenset(group.lead.name for group in groups if group.lead.has_weights and group.lead.kind in kinds)


def _integer_values(
    program: Program, groups: list[_Group], precision: str, record: Quantization | None, layers: frozenset[str]
) -> frozenset[str]:
    """The tensors that lie in memory as int8."""
    if precision not in STATIC:
        return frozenset()
    source = _storage(program)
    if record is not None:
        return frozenset(source.get(name, name) for name in record.activations)
    ends = set(program.inputs) | {source[name] for name in program.outputs}
    values = {group.output for group in groups if group.lead.name in layers}
    for group in groups:
        if group.lead.kind in INTEGER_FRIENDLY and group.lead.exact and set(group.reads) <= values:
            values.add(group.output)
    return frozenset(name for name in values - ends if program.values[name].floating)


def _segment(
    group: _Group,
    program: Program,
    precision: str,
    integer_layers: frozenset[str],
    integer_values: frozenset[str],
    kept: set[str],
) -> Segment:
    lead = group.lead
    half = precision == "fp16" and lead.name not in kept
    if lead.name in integer_layers:
        computed = "int8"
    elif half:
        computed = "fp16"
    elif lead.kind in INTEGER_FRIENDLY and lead.exact and {*group.reads, group.output} <= integer_values:
        computed = "int8"
    else:
        computed = "fp32"
    moved = sum(_bytes(program.values[name], name in integer_values, half) for name in {*group.reads, group.output})
    quantized = computed != "fp32" or (precision.endswith(("weight-only", "mxfp4")) and lead.kind == "matmul")
    bits = WEIGHT_BITS[precision] if quantized and lead.has_weights and lead.name not in kept else 32
    return Segment(lead.name, lead.kind, computed, group.flops, moved + lead.weight_elements * bits / 8)


def _written_out(operator: Operator, program: Program, *, half: bool) -> list[Segment]:
    """Each step in float, as every quantizer leaves it."""
    size = _bytes(replace(program.values[operator.output], elements=1), integer=False, half=half)
    return [
        Segment(
            f"{operator.name}.{step.name}" if step.name else operator.name,
            step.kind,
            "fp16" if half else "fp32",
            step.flops,
            size * step.moved,
        )
        for step in operator.steps
    ]


def _bytes(value: Value, integer: bool, half: bool) -> float:
    if integer:
        return float(value.elements)
    return float(value.size_bytes) / (2 if half and value.floating else 1)


def _quantize_input(group: _Group, program: Program) -> Segment:
    """The pass that finds the range of a dynamically quantized layer's input and rounds it."""
    elements = program.values[group.reads[0]].elements
    return Segment(f"{group.lead.name}.{QUANTIZE}", "elementwise", "fp32", 4.0 * elements, 5.0 * elements)


def peak_bytes(program: Program, integer: Iterable[str] = ()) -> int:
    """By liveness: a value lives from the operator that makes it to the last that reads it; outputs to the end."""
    source = _storage(program)
    integer_sources = {source.get(name, name) for name in integer}
    values = {name: replace(v, element_bytes=1) if name in integer_sources else v for name, v in program.values.items()}
    last = {source[name]: index for index, operator in enumerate(program.operators) for name in operator.inputs}
    last.update({source[name]: len(program.operators) for name in program.outputs})
    dying: dict[int, list[str]] = {}
    for name, index in last.items():
        dying.setdefault(index, []).append(name)
    alive = sum(values[name].size_bytes for name in program.inputs)
    peak = alive
    for index, operator in enumerate(program.operators):
        if source[operator.output] == operator.output:
            alive += values[operator.output].size_bytes
            peak = max(peak, alive)
            if operator.output not in last:
                alive -= values[operator.output].size_bytes
        alive -= sum(values[name].size_bytes for name in dying.get(index, ()))
    return peak
