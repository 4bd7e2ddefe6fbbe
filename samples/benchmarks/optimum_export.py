"""A Hugging Face directory through optimum's ONNX export: an independent path to compare ours with.

python -m samples.benchmarks.optimum_export DIRECTORY
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch

from edgekit.sources import resolve


def export_with_optimum(directory: Path, output: Path) -> Path:
    """The .onnx file that optimum writes for `directory`, in float32 and without its own checks."""
    from optimum.exporters.onnx import main_export

    model = resolve(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about branches that the example inputs take
        main_export(str(directory), output, task=_task(model.task), do_validation=False, local_files_only=True)
    return output / "model.onnx"


def _task(task: str) -> str:
    """optimum's names differ from the Hub's for a few tasks."""
    return {"sentence-embedding": "feature-extraction", "speech-recognition": "automatic-speech-recognition"}.get(
        task, task
    )


def compare_with_optimum(directory: Path, output: Path) -> float:
    """The largest difference between optimum's file in ONNX Runtime and our Model, over the outputs that both have,
    as a fraction of the output's largest value."""
    session = onnxruntime.InferenceSession(str(export_with_optimum(directory, output)))
    model = resolve(directory)
    feeds = {name: value.numpy() for name, value in model.example_inputs.items()}
    # optimum wants token types where the tokenizer makes them.
    for entry in session.get_inputs():
        feeds.setdefault(entry.name, np.zeros_like(next(iter(feeds.values()))))
    theirs = dict(
        zip(
            (entry.name for entry in session.get_outputs()),
            session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()}),
            strict=True,
        )
    )
    ours = model.forward(model.example_inputs)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise SystemExit(f"no output in common: {sorted(ours)} and {sorted(theirs)}")
    return max(
        float((ours[name] - torch.from_numpy(theirs[name])).abs().max() / ours[name].abs().max()) for name in shared
    )


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        click.echo(f"largest relative difference: {compare_with_optimum(directory, Path(folder)):.2e}")


if __name__ == "__main__":
    main()
