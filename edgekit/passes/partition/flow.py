"""What depends on what in a captured graph, so that it can be cut anywhere: values, sizes, weights and memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.errors import PlanError

SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Flow:
    """`nodes`: what computes on inputs, in order, placeholders first. `outputs`: the nodes that the model returns.

    `free`: weights, sizes and what is computed from them alone; each stage has its own. `needs`: the nodes that must
    lie on the same side or below; a tuple needs its elements and memory written through a view needs its writers, so
    that no cut separates them. `readers`: the other direction, of values only. `functional`: operators that write
    over their input, with the operator that computes the same into memory of its own.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    free: frozenset[Node]
    needs: dict[Node, tuple[Node, ...]]
    readers: dict[Node, tuple[Node, ...]]
    functional: dict[Node, Any]

    @classmethod
    def of(cls, graph: GraphModule) -> Flow:
        everything = list(graph.graph.nodes)
        memory = _Memory(everything)
        free = _free(everything, memory)
        nodes = [node for node in everything if node not in free and node.op != "output"]
        outputs = tuple(node for node in graph.graph.output_node().all_input_nodes if node not in free)
        functional = {node: memory.functional[node] for node in nodes if node in memory.functional}
        needs = {node: [before for before in node.all_input_nodes if before not in free] for node in nodes}
        readers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for before in needs[node]:
                readers[before].append(node)
        for node in nodes:
            if isinstance(node.meta.get("val"), list | tuple):
                needs[node] += [user for user in node.users if user.target is operator.getitem]
            needs[node] += [other for other in memory.inseparable(node) if other is not node and other not in free]
            needs[node] += [size.args[0] for size in sizes_under(node, free) if isinstance(size.args[0], Node)]
        return cls(
            tuple(nodes),
            outputs,
            free,
            {node: tuple(dict.fromkeys(before)) for node, before in needs.items()},
            {node: tuple(dict.fromkeys(after)) for node, after in readers.items()},
            functional,
        )

    @property
    def placeholders(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "placeholder")

    def closure(self, nodes: Iterable[Node], known: frozenset[Node] = frozenset()) -> frozenset[Node]:
        """`nodes` with all that they need; `known` is closed already."""
        found = set(known)
        pending = [node for node in nodes if node not in found]
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending += [before for before in self.needs[node] if before not in found]
        return frozenset(found)

    def crossing(self, head: frozenset[Node]) -> tuple[Node, ...]:
        """The values that the rest reads from the closed set `head`, in graph order.

        Raises PlanError where one of them is a number that depends on the input's values, or has a size that is
        computed from a dynamic one: a file says which sizes are equal, not how others follow.
        """
        kept = set(self.outputs)
        alive = [
            node
            for node in self.nodes
            if node in head and (node in kept or any(reader not in head for reader in self.readers[node]))
        ]
        missing = self._sizes_missing(head, alive)
        crossing = [node for node in self.nodes if node in alive or node in missing] if missing else alive
        for node in crossing:
            why_not = unsendable(node)
            if why_not:
                raise PlanError(
                    f"the value of {node.name} would cross, and it {why_not}",
                    hint="cut elsewhere: cuts(model) lists where",
                )
        return tuple(crossing)

    def _sizes_missing(self, head: frozenset[Node], alive: list[Node]) -> set[Node]:
        """Values whose size the rest asks for where no value that crosses has the same dimension."""
        known = {expression for node in alive for expression, _ in dimensions(node)}
        missing: set[Node] = set()
        for node in self.nodes:
            if node in head:
                continue
            for size in sizes_under(node, self.free, known):
                source = size.args[0]
                if isinstance(source, Node) and source in head and source not in alive:
                    missing.add(source)
        return missing


def unsendable(node: Node) -> str:
    """Why the value of `node` cannot cross, or ""."""
    value = node.meta.get("val")
    if value is not None and not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, allowed tensors"
    computed = next((size for size, _ in dimensions(node) if not size.is_Symbol), None)
    return f"has the size {computed}, allowed the dynamic sizes themselves" if computed is not None else ""


def dimensions(node: Node) -> Iterator[tuple[Any, int]]:
    """(symbolic size, dimension) of each dynamic dimension of the node's value."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        sizes: list[Any] = list(value.shape)
        for dim, size in enumerate(sizes):
            if isinstance(size, torch.SymInt):
                yield size.node.expr, dim


def expression(node: Node) -> Any:
    """The symbolic size that a node without a tensor computes; None for others."""
    value = node.meta.get("val")
    return value.node.expr if isinstance(value, torch.SymInt) else None


def sizes_under(node: Node, free: frozenset[Node], known: Iterable[Any] = ()) -> list[Node]:
    """The `sym_size` nodes that `node` uses, by itself or through free nodes; those in `known` end the search."""
    found: list[Node] = []
    pending = [before for before in node.all_input_nodes if before in free]
    seen: set[Node] = set()
    while pending:
        before = pending.pop()
        if before in seen:
            continue
        seen.add(before)
        size = expression(before)
        if size is not None and size in known:
            continue
        if before.target is SIZE:
            found.append(before)
        else:
            pending += [source for source in before.all_input_nodes if source in free]
    return found


def _free(nodes: list[Node], memory: _Memory) -> frozenset[Node]:
    """Until nothing changes: memory that an operator on inputs writes into is not a constant, whoever made it."""
    tainted: set[Node] = set()
    while True:
        free: set[Node] = set()
        for node in nodes:
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            constant = node.op == "call_function" and not random and all(b in free for b in node.all_input_nodes)
            if node.op == "get_attr" or node.target is SIZE or (constant and memory.root[node] not in tainted):
                free.add(node)
        written = {memory.root[node] for node in memory.written_by if node not in free}
        if written <= tainted:
            return frozenset(free)
        tainted |= written


class _Memory:
    """Which nodes share memory, and who writes into it.

    An operator that writes over its input in front of all its readers is the same as one that does not write, and
    stands in `functional`; any other write binds all nodes on that memory together.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.root: dict[Node, Node] = {}
        self.written_by: list[Node] = []
        self.functional: dict[Node, Any] = {}
        self._bound: dict[Node, list[Node]] = {}
        position = {node: index for index, node in enumerate(nodes)}
        shared: dict[Node, list[Node]] = {}
        for node in nodes:
            first = node.all_input_nodes[0] if node.all_input_nodes else None
            self.root[node] = self.root[first] if first is not None and _shares(node) else node
            shared.setdefault(self.root[node], []).append(node)
            if _writes(node):
                self.written_by.append(node)
        for node in self.written_by:
            group = shared[self.root[node]]
            stale = [other for other in group if position[other] < position[node]]
            late = any(position[user] > position[node] for other in stale for user in other.users)
            plain = None if late else _without_writing(node)
            if plain is not None:
                self.functional[node] = plain
            else:
                readers = [user for other in group for user in other.users if position[user] <= position[node]]
                self._bound.setdefault(self.root[node], []).extend([*group, *readers])

    def inseparable(self, node: Node) -> list[Node]:
        return self._bound.get(self.root[node], [])


def _schema(node: Node) -> Any:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


def _shares(node: Node) -> bool:
    """The result may lie in the memory of the first argument."""
    schema = _schema(node)
    if schema is None:
        return node.target is operator.getitem
    return any(value.alias_info is not None for value in schema.returns)


def _writes(node: Node) -> bool:
    schema = _schema(node)
    return schema is not None and bool(schema.is_mutable)


def _without_writing(node: Node) -> Any:
    """`relu_` -> `relu`: the operator with the same arguments, where it would give the same dtype; None without."""
    schema = _schema(node)
    dtypes = {value.dtype for before in node.all_input_nodes if isinstance(value := before.meta.get("val"), Tensor)}
    name = schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    plain = getattr(packet, schema.overload_name or "default", None)
    if plain is None or not name.endswith("_") or len(dtypes) != 1:
        return None
    same = [argument.name for argument in plain._schema.arguments] == [argument.name for argument in schema.arguments]
    return plain if same and not plain._schema.is_mutable else None
