"""Readable names of places in a graph, from the modules that its nodes come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch.fx import Node


class Places:
    """Names the place behind a node after the outermost module that ends there: `_blocks.5` -> `blocks.5`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._ends: dict[Node, str] = {}
        last: dict[str, Node] = {}
        for node in nodes:
            last.update(dict.fromkeys(module_paths(node), node))
        wrapper = _wrapper(last)
        for path, node in last.items():
            short = path.removeprefix(wrapper)
            if short and (node not in self._ends or _depth(short) < _depth(self._ends[node])):
                self._ends[node] = short

    def name(self, nodes: Iterable[Node]) -> str:
        """The name of a place that any of `nodes` ends: the outermost, else the first node's own name."""
        nodes = list(nodes)
        ends = [self._ends[node] for node in nodes if node in self._ends]
        return friendly(min(ends, key=_depth)) if ends else nodes[0].name


def module_paths(node: Node) -> list[str]:
    """The paths of the modules around a node, outermost first, the model itself left out."""
    stack = node.meta.get("nn_module_stack") or {}
    return [entry[0] for entry in stack.values() if entry[0]]


def friendly(path: str) -> str:
    """`_blocks.5._project_conv` -> `blocks.5.project_conv`: what one types without quotes."""
    parts = [re.sub(r"[^A-Za-z0-9_]", "_", part).strip("_") for part in path.split(".")]
    return ".".join(part for part in parts if part)


def identifier(name: str) -> str:
    """`blocks.5` -> `blocks_5`: letters, digits and underscores, no digit in front."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"value_{name}" if not name or name[0].isdigit() else name


def unique(name: str, taken: Iterable[str], mark: str) -> str:
    """`name`, with `mark` and a number behind it where it is taken."""
    known = set(taken)
    number = 2
    result = name
    while result in known:
        result = f"{name}{mark}{number}"
        number += 1
    return result


def _wrapper(paths: Iterable[str]) -> str:
    """The module that holds all the others (`model.`), which says nothing about a place."""
    heads = {path.split(".")[0] for path in paths}
    return f"{heads.pop()}." if len(heads) == 1 else ""


def _depth(path: str) -> int:
    return path.count(".")
