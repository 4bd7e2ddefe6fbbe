"""The float program of a stage as a portable .pt2: what a server's torch engine compiles for its own machine.

It is no artifact that a device runs, so it is no Exporter: it lies beside a part as a companion, and the part's own
file, precision and digests say what the part is. Written are the graph, raw weights and nothing else: no example inputs
(which torch pickles), no guards (which are Python), no paths of the machine it was made on. Same Model, same bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from edgekit.errors import ExportError, SessionError
from edgekit.model import Model
from edgekit.passes.capture import export_program
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX
from edgekit.runtimes.torch_engine.program import check_program

# Where a node came from: file names, lines and classes of this machine.
TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def write_torch_program(model: Model, directory: Path) -> Path:
    """`directory/<model.name>.torch.pt2`; dimensions that the Model leaves open stay open.

    `model` is captured and float. Raises ExportError for a model without a torch graph, with integers, or with
    something in it that is no tensor; CaptureError.
    """
    if model.onnx_path is not None or model.quantization is not None:
        what = "a trained .onnx file" if model.onnx_path is not None else "quantized"
        raise ExportError(
            f"the torch engine runs float torch graphs, and {model.name} is {what}",
            hint="leave --engine torch out, or give the module that the file was exported from",
        )
    program = export_program(model)
    _forget_origin(program)
    path = directory / f"{model.name}{PROGRAM_SUFFIX}"
    torch.export.save(program, path)
    try:
        check_program(path)
    except SessionError as error:
        path.unlink()
        raise ExportError(
            f"the program of {model.name} cannot be kept without pickles or Python: {error.message}",
            hint="leave --engine torch out: the server runs the part in its own format",
        ) from error
    return path


def _forget_origin(program: ExportedProgram) -> None:
    program.example_inputs = None
    program._guards_code = []
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for trace in TRACES:
                    node.meta.pop(trace, None)
