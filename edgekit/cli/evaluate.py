"""`edgekit evaluate`"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Output, facts
from edgekit.cli.wording import count_text, ms_text, plain, quality_text
from edgekit.errors import DataError, EdgekitError, UsageError
from edgekit.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Manifest
    from edgekit.cli.evaluation_data import Samples
    from edgekit.report.model import Quality
    from edgekit.runtimes.predict import Predictor, Source

    # a sample as the user has it -> the float model's judged output
    Answer = Callable[[Source], np.ndarray]


@dataclass(frozen=True)
class Lost:
    """Points of accuracy against the float model on the same samples, with their 95 % interval. `p_value`: of "both are
    right equally often" (McNemar, exact)."""

    points: float
    low: float
    high: float
    p_value: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Lost:
        """Whether each answer is right, bool [N] twice."""
        from edgekit.evaluation.intervals import mcnemar, share_difference

        found = share_difference(before, after)
        return cls(100 * found.value, 100 * found.low, 100 * found.high, mcnemar(before, after))

    def __str__(self) -> str:
        interval = f"95 %: {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.points:+.2f} points lost ({interval}; McNemar's p {self.p_value:.2g})"


@make_command(
    """
    edgekit evaluate cats.edgekit --data photos/
    edgekit evaluate fashion.edgekit --data fashion-test.npz --limit 1000
    edgekit evaluate cats.edgekit --data photos/ --reference cats-float.edgekit
    edgekit evaluate cats.edgekit --data photos/ --reference efficientnet-lite0 --json
    edgekit evaluate fashion.edgekit --data fashion-test.npz --variants
    """,
    name="evaluate",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR|FILE",
    help="Folder of images or arrays, .npz or .npy file of rows, or text with a sample a line.",
)
@click.option(
    "--reference",
    metavar="BUNDLE|SOURCE",
    help="The float model: another bundle, or a source as `edgekit export` takes it; without it the bundle's own "
    "float part, or the source that it was exported from.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many samples, evenly spread.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the runtime; all cores without it.")
@click.option("--part", metavar="NAME", help="Another part than the default one (`edgekit inspect` lists them).")
@click.option(
    "--variants", is_flag=True, help="Every variant that runs here: accuracy, mean time, and the bound of any choice."
)
def command(
    out: Output,
    bundle: Path,
    data: Path,
    reference: str | None,
    limit: int | None,
    threads: int | None,
    part: str | None,
    variants: bool,
) -> None:
    """Judge BUNDLE on data: accuracy where it tells the classes, else agreement with the float model.

    Classes are told by sub-folders named after the labels (or their numbers), or by an array `labels` in a .npz file.
    Accuracy needs no float model; where --reference gives one, both are reported, with what is lost between them on
    the same samples. Intervals are 95 % (Wilson, Newcombe).
    """
    from edgekit.bundle import Bundle
    from edgekit.cli.evaluate_variants import judge_variants, show_variants
    from edgekit.cli.evaluation_data import read_samples
    from edgekit.runtimes.load import candidate_parts, load
    from edgekit.runtimes.predict import Predictor

    with ExitStack() as stack:
        opened = stack.enter_context(Bundle.open(bundle))
        manifest = opened.manifest
        labels = manifest.postprocess.labels if manifest.postprocess is not None else ()
        names = [entry.name for entry in candidate_parts(manifest, part=part)[0].inputs]
        samples = read_samples(data, names, labels, getattr(manifest.preprocess, "kind", None)).spread(limit)
        if variants:
            if part is not None or reference is not None:
                raise UsageError("--variants with --part or --reference", hint="give one of them")
            with out.working() as progress:
                found = judge_variants(opened, samples, threads, progress)
            out.emit({"bundle": str(bundle), "data": str(data), **found})
            show_variants(out, found)
            return
        progress = stack.enter_context(out.working())
        session = stack.enter_context(load(opened, part=part, threads=threads))
        predictor = Predictor(opened, session)
        float_answer, described = _reference(stack, predictor, opened, reference, samples, part, progress)
        quality, lost, inference_ms = _judge(predictor, manifest, samples, float_answer, described, progress)
    out.emit(
        {
            "bundle": str(bundle),
            "data": str(data),
            "format": session.format,
            "quality": plain(quality),
            "lost": plain(lost),
            "latency_ms": {"inference_p50": inference_ms},
        }
    )
    _show(out, quality, lost, inference_ms, data)


def _judge(
    predictor: Predictor,
    manifest: Manifest,
    samples: Samples,
    float_answer: Answer | None,
    described: str,
    progress: Progress,
) -> tuple[Quality, Lost | None, float]:
    """The quality, what is lost to the float model where the classes are known, and the median inference time in ms."""
    import numpy as np

    from edgekit.report.evaluate import evaluate_accuracy, evaluate_agreement

    output = _judged_output(manifest, predictor)
    actual, wanted, laps = [], [], []
    for number, source in enumerate(samples.sources, 1):
        prediction = predictor.predict(source, count=1)
        laps.append(prediction.latency_ms["inference"])
        actual.append(prediction.outputs[output])
        if float_answer is not None:
            wanted.append(float_answer(source))
        progress("evaluate", number, len(samples.sources))
    answers = np.stack([np.asarray(row) for row in actual])
    references = np.stack([np.asarray(row).reshape(answers[0].shape) for row in wanted]) if wanted else None
    lost = None
    if samples.classes is not None:
        quality = evaluate_accuracy(samples.classes, _flat(answers), None if references is None else _flat(references))
        if references is not None:
            truth = np.asarray(samples.classes)
            lost = Lost.of(*(_flat(rows).argmax(-1) == truth for rows in (references, answers)))
    else:
        assert references is not None, "_reference refuses data without classes and without a float model"
        task = manifest.postprocess.kind if manifest.postprocess is not None else manifest.task
        quality = evaluate_agreement(_flat(references), _flat(answers), task=task, reference_name=described)
    return quality, lost, statistics.median(laps)


def _flat(rows: np.ndarray) -> np.ndarray:
    """[samples, 1, classes] -> [samples, classes]."""
    return rows.reshape(len(rows), -1)


def _judged_output(manifest: Manifest, predictor: Predictor) -> str:
    return manifest.postprocess.output if manifest.postprocess is not None else predictor.session.outputs[0].name


def _reference(
    stack: ExitStack,
    predictor: Predictor,
    bundle: Bundle,
    reference: str | None,
    samples: Samples,
    part: str | None,
    progress: Progress,
) -> tuple[Answer | None, str]:
    """The float model, and what it is called. None where the classes are known and nobody asked for it.

    Raises UsageError where it is needed and cannot be had.
    """
    from edgekit.bundle import Bundle

    manifest = bundle.manifest
    output = _judged_output(manifest, predictor)
    if reference is not None and _is_bundle(Path(reference)):
        other = stack.enter_context(Bundle.open(reference))
        floats = _float_parts(other.manifest)
        return _part_answer(stack, other, floats[0] if floats else None, output), reference
    if reference is not None:
        return _source_answer(stack, reference, predictor, output, progress), reference
    twins = [name for name in _float_parts(manifest) if name != (part or manifest.part().name)]
    if twins:
        return _part_answer(stack, bundle, twins[0], output), f"the float part {twins[0]!r}"
    if samples.classes is not None:
        return None, ""
    source = manifest.provenance.source
    try:
        return _source_answer(stack, source, predictor, output, progress), source
    except (EdgekitError, ImportError) as error:
        raise UsageError(
            f"{bundle.path} holds no float part, and its source {source!r} does not load here: "
            f"{getattr(error, 'message', error)}",
            hint="give --reference BUNDLE|SOURCE, export with --include-float, or sort the data into class folders",
        ) from error


def _float_parts(manifest: Manifest) -> list[str]:
    return [part.name for part in manifest.parts if part.precision == "fp32"]


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".edgekit" or (path / "index.json").is_file()


def _part_answer(stack: ExitStack, bundle: Bundle, part: str | None, output: str) -> Answer:
    """One thread: the judged session is the one that has the machine."""
    from edgekit.runtimes.load import load
    from edgekit.runtimes.predict import Predictor

    session = stack.enter_context(load(bundle, part=part, threads=1))
    names = [spec.name for spec in session.outputs]
    if output not in names:
        raise DataError(
            f"{bundle.path} has no output {output!r}, only {', '.join(names)}", hint="is it the same model?"
        )
    other = Predictor(bundle, session)
    return lambda source: other.predict(source, count=1).outputs[output]


def _source_answer(stack: ExitStack, source: str, predictor: Predictor, output: str, progress: Progress) -> Answer:
    """The eager module behind `source` in torch, or the trained .onnx file in ONNX Runtime.

    It is given the bundle's own input tensors; its outputs come in the order of the bundle's.
    """
    progress(f"load {source}", 0, 0)
    import torch

    from edgekit.model import flatten_outputs
    from edgekit.runtimes.session import open_session
    from edgekit.sources import resolve

    model = resolve(source)
    place = [spec.name for spec in predictor.session.outputs].index(output)
    if model.onnx_path is not None:
        specs = model.input_specs, model.output_specs
        session = stack.enter_context(open_session("onnx", model.onnx_path, *specs))
        return lambda sample: list(session.run(predictor.feeds(sample)).values())[place]
    module = model.module.eval()

    def answer(sample: Source) -> np.ndarray:
        feeds = predictor.feeds(sample)
        tensors = [_channels_first(torch.from_numpy(feeds[name]), like) for name, like in model.example_inputs.items()]
        with torch.no_grad():
            found: np.ndarray = flatten_outputs(module(*tensors))[place].numpy()
        return found

    return answer


def _channels_first(value: Tensor, like: Tensor) -> Tensor:
    """A bundle exported with --channels-last takes [N, H, W, C]; the module still wants [N, C, H, W]."""
    if value.dim() == 4 and value.shape[1:] != like.shape[1:] and value.shape[-1] == like.shape[1]:
        return value.permute(0, 3, 1, 2)
    return value


def _show(out: Output, quality: Quality, lost: Lost | None, inference_ms: float, data: Path) -> None:
    rows: list[tuple[str, str | Cell]] = [
        ("data", f"{data}, {count_text(quality.samples, 'sample')}"),
        ("quality", Cell(quality_text(quality), "bold")),
    ]
    if quality.float_accuracy is not None and lost is not None:
        rows.append(("float model", f"accuracy {100 * quality.float_accuracy:.1f} %: {lost}"))
    if quality.top1_agreement is not None and quality.measure == "accuracy":
        rows.append(("agreement", f"{100 * quality.top1_agreement:.1f} % with the float model"))
    rows.append(("inference", f"{ms_text(inference_ms)} ms, median"))
    out.table(facts(rows))
