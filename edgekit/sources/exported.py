"""A .pt2 file (torch.export.save) becomes a captured Model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgekit.digests import digest_file
from edgekit.errors import SourceError
from edgekit.model import Model, Sample, Source
from edgekit.passes.capture import flatten
from edgekit.sources.modules import name_outputs, slug

FORBIDDING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def from_pt2(path: Path) -> Model:
    """Inputs, their names and which dimensions move are the file's own. Raises SourceError, also for a file that holds
    pickled objects beside tensors: to read those would run what it says."""
    try:
        with _tensors_only():
            program = torch.export.load(path)
    except Exception as error:  # zipfile, pickle and torch's own errors, by what is damaged
        reason = (str(error).splitlines() or ["no message"])[0]
        raise SourceError(
            f"{path} is not an exported program: {type(error).__name__}: {reason}",
            hint="write it with torch.export.save(torch.export.export(module, example_inputs), path)",
        ) from error
    inputs = _example_inputs(program, path)
    graph = flatten(program)
    with torch.no_grad():
        outputs = program.module(check_guards=False)(*program.example_inputs[0], **program.example_inputs[1])
    return Model(
        name=slug(path.stem),
        module=graph,
        example_inputs=inputs,
        output_names=name_outputs(outputs),
        dynamic=_dynamic(program),
        source=Source("pt2", path.name, digest_file(path)),
    )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.export.load falls back to unpickling whatever example inputs there are, unless the environment forbids."""
    before = os.environ.get(FORBIDDING)
    os.environ[FORBIDDING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORBIDDING]
        else:
            os.environ[FORBIDDING] = before


def _example_inputs(program: ExportedProgram, path: Path) -> Sample:
    if program.example_inputs is None:
        raise SourceError(f"{path} holds no example inputs", hint="save it again with torch.export.save")
    args, kwargs = program.example_inputs
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if len(names) != len(leaves) or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise SourceError(f"{path} takes inputs that are not tensors", hint="export a forward that takes tensors only")
    return dict(zip(names, leaves, strict=True))


def _dynamic(program: ExportedProgram) -> dict[str, dict[int, str]]:
    """The symbol of a first dimension is called batch, any other dim_1, dim_2 ..."""
    names: dict[str, str] = {}
    found: dict[str, dict[int, str]] = {}
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name in program.graph_signature.user_inputs:
        for dim, size in enumerate(values[str(name)].shape):
            if isinstance(size, torch.SymInt):
                fallback = "batch" if dim == 0 and "batch" not in names.values() else f"dim_{len(names) + 1}"
                found.setdefault(str(name), {})[dim] = names.setdefault(str(size), fallback)
    return found
