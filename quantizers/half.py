"""fp16 with an overflow guard: a graph that computes in half precision, except where the numbers would not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.progress import Progress
from edgekit.quantization import Fallback, Quantization
from edgekit.quantizers.anatomy import (
    TRANSPOSED_CONVOLUTIONS,
    add_tensor,
    argument,
    aten,
    attribute_named,
    drop_unused_tensors,
    tensor_named,
    weighted_layer,
)
from edgekit.quantizers.base import Quantizer

LARGEST = 65504.0
MEANS = {aten.mean.dim, aten.mean.default, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default}
SUMS = {aten.sum.dim_IntList, aten.sum.default, aten.cumsum.default}
NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default, aten.instance_norm.default}


@dataclass(frozen=True)
class Fp16(Quantizer):
    """Inputs and outputs stay float32; casts stand at the boundaries and around what stays float32.

    With calibration data a node stays float32 where a value that it makes or reads, or a partial sum that it forms on
    the way (the squares of a normalisation, the sum behind a mean, the products of a linear layer in absolute value),
    goes beyond `headroom` times fp16's largest number. Without calibration only the weights are checked.
    """

    headroom: float = 0.5

    method: ClassVar[str] = "fp16"
    reads_scheme: ClassVar[bool] = False

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        model = FoldBatchNorm()(model, progress)
        reasons = dict(self.keep)
        for name, value in self._peaks(model, progress).items():
            if value > LARGEST * self.headroom:
                reasons.setdefault(name, f"reaches {value:.3g}, fp16 holds {LARGEST:.0f}")
        graph = model.copy_graph()
        _to_half(graph, set(reasons))
        fallbacks = tuple(Fallback(layer, "float32", why) for layer, why in reasons.items())
        layers = tuple(
            node.name for node in graph.graph.nodes if weighted_layer(node) is not None and node.name not in reasons
        )
        record = Quantization(self.method, self.scheme, layers=layers, fallbacks=fallbacks)
        return replace(model, module=graph, quantization=record), f"{len(fallbacks)} nodes stay float32"

    @staticmethod
    def _peaks(model: Model, progress: Progress) -> dict[str, float]:
        """The largest magnitude that each node has to hold, by node name."""
        watcher = _PeakWatcher(model.graph)
        with torch.no_grad():
            for done, sample in enumerate(model.calibration):
                watcher.run(*sample.values())
                progress("measure range", done + 1, len(model.calibration))
        return watcher.peaks


class _PeakWatcher(fx.Interpreter):
    """Looks through each value once, when it is made, and through each weight once for all samples.

    All samples are taken: the largest value of a node may come with the last of them (of MiniLM-L6's 114 sentences the
    first 64 leave one node at 0.83 of its peak, the first 32 leave one at 0), and this costs little more than twice
    what the model alone does.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        nodes = list(graph.graph.nodes)
        self._magnitudes: dict[Node, float] = {
            node: _magnitude(attribute_named(graph, str(node.target))) for node in nodes if node.op == "get_attr"
        }
        weights = self._magnitudes
        self.peaks: dict[str, float] = {
            node.name: max((weights.get(source, 0.0) for source in node.all_input_nodes), default=0.0)
            for node in nodes
            if node.op == "call_function"
        }

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr":
            return value
        self._magnitudes[n] = _magnitude(value)
        if n.op == "call_function":
            sources = [self.env[source] for source in n.all_input_nodes]
            # In fp16 a node also has to take its inputs: the root of 4e6 fits, 4e6 does not.
            taken = (self._magnitudes[source] for source in n.all_input_nodes)
            self.peaks[n.name] = max(self.peaks[n.name], self._magnitudes[n], _partial_sums(n, sources), *taken)
        return value


def _magnitude(value: object) -> float:
    """Largest finite |value|; minus infinity as a mask is exact in fp16."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return 0.0
    # Masks are the lowest float32: they become fp16's lowest, which softmax treats alike.
    mask = torch.finfo(torch.float32).max / 4
    low, high = (float(end) for end in torch.aminmax(value.detach()))
    if max(-low, high) < mask:  # never, where there is a NaN
        return max(-low, high)
    magnitude = value.detach().abs()
    kept = magnitude[magnitude < mask]
    return float(kept.max()) if kept.numel() else 0.0


def _partial_sums(node: Node, sources: list[Any]) -> float:
    """What an fp16 accumulator would have to hold while `node` is computed."""
    if not sources or not isinstance(sources[0], Tensor) or not sources[0].is_floating_point():
        return 0.0
    value = sources[0].detach().float()
    if node.target in NORMS:
        size = len(argument(node, 1, "normalized_shape", [1])) if node.target is aten.layer_norm.default else 1
        return float(value.square().sum(list(range(-size, 0))).max())
    if node.target in MEANS:
        dims = argument(node, 1, "dim", None) if node.target is aten.mean.dim else [-2, -1]
        return float(value.abs().sum(dims or list(range(value.dim()))).max())
    if node.target in SUMS:
        return float(value.abs().sum(-1).max())
    layer = weighted_layer(node)
    if layer is not None and not layer.is_convolution and node.target not in TRANSPOSED_CONVOLUTIONS:
        weight = sources[node.all_input_nodes.index(layer.weight_node)].detach().float()
        source = sources[node.all_input_nodes.index(layer.source)].detach().float()
        return float((source.abs() @ (weight.abs().T if layer.axis == 0 else weight.abs())).max())
    return 0.0


def _to_half(graph: GraphModule, floats: set[str]) -> None:
    """Rewrites `graph` in place: every float32 node except those named in `floats` computes in fp16."""
    half: set[Node] = set()
    halves: dict[str, Node] = {}
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(graph.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)  # it holds the graph to the dtypes of its capture
            continue
        if node.op == "output":
            for source in node.all_input_nodes:
                if source in half:
                    node.replace_input_with(source, _cast(graph, source, torch.float32, node, casts))
        if node.op != "call_function":
            continue
        wants_half = node.name not in floats and (_is_float32(node) or _takes_floats(node))
        for source in list(node.all_input_nodes):
            if source.op == "get_attr" and wants_half and _is_float32(source):
                node.replace_input_with(source, _half_tensor(graph, source, node, halves))
            elif wants_half and source not in half and _is_float32(source):
                node.replace_input_with(source, _cast(graph, source, torch.float16, node, casts))
            elif not wants_half and source in half:
                node.replace_input_with(source, _cast(graph, source, torch.float32, node, casts))
        if wants_half:
            _replace_dtypes(node)
            if _is_float32(node):
                half.add(node)
    drop_unused_tensors(graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _half_tensor(graph: GraphModule, source: Node, reader: Node, halves: dict[str, Node]) -> Node:
    name = str(source.target)
    if name not in halves:
        value = tensor_named(graph, name).detach()
        first = next(node for node in graph.graph.nodes if node.op != "get_attr")
        halves[name] = add_tensor(graph, f"{name}_half", _fitted(value).half(), first)
    return halves[name]


def _cast(
    graph: GraphModule, source: Node, dtype: torch.dtype, before: Node, casts: dict[tuple[Node, torch.dtype], Node]
) -> Node:
    if (source, dtype) not in casts:
        with graph.graph.inserting_after(source):
            cast = graph.graph.call_function(aten.to.dtype, (source, dtype))
        value = source.meta.get("val")
        cast.meta["val"] = value.to(dtype) if isinstance(value, Tensor) else None
        casts[source, dtype] = cast
    return casts[source, dtype]


def _replace_dtypes(node: Node) -> None:
    """A dtype that the graph spells out follows the node; masks of float32's lowest number become fp16's."""
    node.args = tuple(_fitted_number(value) for value in node.args)
    if any(argument_ is torch.float32 for argument_ in node.args):
        node.args = tuple(torch.float16 if value is torch.float32 else value for value in node.args)
    if node.kwargs.get("dtype") is torch.float32:
        node.kwargs = {**node.kwargs, "dtype": torch.float16}


def _fitted(value: Tensor) -> Tensor:
    """Infinity stays what it is, other numbers beyond fp16 become its largest."""
    return torch.where(torch.isinf(value), value, value.clamp(-LARGEST, LARGEST))


def _fitted_number(value: Any) -> Any:
    if isinstance(value, float) and LARGEST < abs(value) < float("inf"):
        return LARGEST if value > 0 else -LARGEST
    return value


def _is_float32(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return any(isinstance(part, Tensor) and part.dtype == torch.float32 for part in value)
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _takes_floats(node: Node) -> bool:
    return any(_is_float32(source) for source in node.all_input_nodes)
