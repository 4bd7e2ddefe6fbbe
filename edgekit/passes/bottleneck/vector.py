"""Vector quantization at a cut: codebooks fitted on calibration features, refined against the tail, indices sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import DataError
from edgekit.model import Model, Sample
from edgekit.passes.bottleneck.axes import Projection, principal_projection
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.bottleneck.codebooks import Codebooks, fit_codebooks, rate_prefixes
from edgekit.passes.capture import export_program, flatten
from edgekit.progress import Progress, silent
from edgekit.runtimes.codecs.entropy import integer_table
from edgekit.runtimes.codecs.residual import KIND, LARGEST, ResidualTables
from edgekit.runtimes.codecs.tables import write_tables

HEADROOM = 4  # how far beyond the calibration features a column may reach before it is clipped
METRIC_FLOOR = 0.01  # of the mean sensitivity: no direction is free


@dataclass(frozen=True)
class VectorBottleneck(Bottleneck):
    """At each position of a feature, its channels are rotated onto `axes` principal axes in the metric of the tail's
    sensitivity, and cut into `groups` that are coded by `stages` of `codewords` each.

    The rates drop units (a stage of a group) from the least gainful on, `rates` of them or fewer. `price`: the share of
    what a unit finds left over that a bit of it may cost (entropy-constrained assignment). `refine_epochs` passes over
    the calibration data move the codewords towards what the tail answers without a bottleneck.
    """

    axes: int = 32
    groups: int = 4
    stages: int = 8
    codewords: int = 16
    rates: int = 12
    price: float = 1e-3
    refine_epochs: int = 20
    learning_rate: float = 1e-2
    batch: int = 32
    seed: int = 0

    def insert(
        self, head: Model, tail: Model, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> Squeezed:
        features = gather_features(head)
        names = list(features)
        layouts = {name: Layout.of(value) for name, value in features.items()}
        metrics = sensitivity(tail, features, seed=self.seed)
        axes, books = {}, {}
        for index, name in enumerate(names):
            progress("codebooks", index, len(names))
            points = layouts[name].points(features[name]).flatten(0, 1)
            axes[name] = self._axes(points, layouts[name].pooled(metrics[name]), name)
            books[name] = fit_codebooks(
                (points - axes[name].mean) @ axes[name].project,
                groups=self.groups,
                stages=self.stages,
                codewords=self.codewords,
                seed=self.seed,
                price=self.price,
            )
        progress("codebooks", len(names), len(names))
        squeezed_head = fold_head(head, layouts, axes)
        squeezed_tail = fold_tail(tail, squeezed_head, layouts, axes)
        kept = rate_prefixes(self.groups * self.stages, self.rates)
        coded = {
            name: layouts[name].points(value).sub(axes[name].mean) @ axes[name].project
            for name, value in features.items()
        }
        books, gained = refine(
            books,
            squeezed_tail,
            coded,
            kept,
            epochs=self.refine_epochs,
            rate=self.learning_rate,
            batch=self.batch,
            seed=self.seed,
            progress=progress,
        )
        arrays: dict[str, np.ndarray] = {}
        for index, name in enumerate(names):
            arrays |= make_tables(books[name], coded[name].flatten(0, 1), kept).arrays(index)
        detail = (
            f"{self.groups} groups x {self.stages} stages of {self.codewords} codewords on "
            f"{next(iter(axes.values())).project.shape[1]} axes, {len(kept)} rates, {gained}"
        )
        tables = write_tables(KIND, {}, arrays)
        return Squeezed(squeezed_head, squeezed_tail, KIND, tables, len(kept), detail)

    def _axes(self, points: Tensor, metric: Tensor, name: str) -> Projection:
        """Raises DataError where the groups cannot be filled, or the data cannot fill the codebooks."""
        wanted = min(self.axes, points.shape[1])
        wanted -= wanted % self.groups
        if wanted < self.groups:
            raise DataError(
                f"feature {name!r} has {points.shape[1]} channels, allowed at least {self.groups} (the groups)"
            )
        if len(points) < 4 * self.codewords:
            raise DataError(
                f"{len(points)} feature vectors for {self.codewords} codewords, allowed at least {4 * self.codewords}",
                hint="give more calibration data, or ask for fewer codewords",
            )
        return principal_projection(points, wanted, metric)


@dataclass(frozen=True)
class Layout:
    """How a feature becomes [batch, positions, channels] and back: images hold their channels second, others last."""

    shape: tuple[int, ...]  # without the batch

    @classmethod
    def of(cls, value: Tensor) -> Layout:
        """Raises DataError for a feature that is not float32 [batch, ...] with one to three more dimensions."""
        if value.dtype != torch.float32 or not 2 <= value.dim() <= 4:
            raise DataError(
                f"a feature of {value.dtype} {list(value.shape)}, allowed float32 with 2 to 4 dimensions",
                hint="cut where images, tokens or vectors cross",
            )
        return cls(tuple(value.shape[1:]))

    @property
    def channels(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    def points(self, value: Tensor) -> Tensor:
        """[B, ...] -> [B, positions, channels]."""
        if len(self.shape) == 3:
            return value.flatten(2).transpose(1, 2)
        return value.reshape(-1, self.shape[0] if len(self.shape) == 2 else 1, self.channels)

    def values(self, points: Tensor) -> Tensor:
        """[B, positions, channels] -> [B, ...]."""
        moved = points.transpose(1, 2) if len(self.shape) == 3 else points
        return moved.reshape(-1, *self.shape)

    def pooled(self, gradients: Tensor) -> Tensor:
        """[B, ...] -> [channels, channels]: the mean square over positions, no direction below a floor."""
        rows = self.points(gradients).flatten(0, 1)
        metric = rows.T @ rows / len(rows)
        mean = metric.diagonal().mean()
        if not float(mean) > 0:
            return torch.eye(self.channels)
        return metric / mean + METRIC_FLOOR * torch.eye(self.channels)


def gather_features(head: Model) -> Sample:
    """The head's outputs for its calibration data, the batch first. Raises DataError where there are none."""
    if not head.calibration:
        raise DataError("no calibration data, and a bottleneck is fitted on it", hint="pass --calibration or --train")
    outputs = [head.forward(sample) for sample in head.calibration]
    return {name: torch.cat([output[name] for output in outputs]) for name in head.output_names}


def sensitivity(tail: Model, features: Sample, *, seed: int, batch: int = 32) -> Sample:
    """By feature, [N, ...]: the gradient of what the tail says, for one drawn direction a sample.

    A classifier's direction is the log-probability of a class that it draws itself, so that the mean square is the
    Fisher information; any other tail's is a random sign for each of its outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    is_classifier = tail.postprocess is not None and tail.postprocess.kind == "classification"
    found: dict[str, list[Tensor]] = {name: [] for name in features}
    for start in range(0, len(next(iter(features.values()))), batch):
        part = {name: value[start : start + batch].detach().requires_grad_() for name, value in features.items()}
        answer = run_module(tail, part)
        if is_classifier:
            scores = answer.log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
            said = scores.gather(1, drawn).sum()
        else:
            signs = torch.randint(0, 2, answer.shape, generator=generator).to(answer.dtype) * 2 - 1
            said = (answer * signs).sum()
        gradients = torch.autograd.grad(said, list(part.values()), allow_unused=True)
        for (name, value), gradient in zip(part.items(), gradients, strict=True):
            found[name].append(torch.zeros_like(value) if gradient is None else gradient)
    return {name: torch.cat(parts) for name, parts in found.items()}


def run_module(model: Model, sample: Sample) -> Tensor:
    """The first output, with gradients."""
    output = model.module(*sample.values())
    value: Tensor = output[0] if isinstance(output, tuple | list) else output
    return value


class _Rotate(nn.Module):
    """[B, ...] -> [B, positions, axes]; `pooled`: the mean over positions, [B, 1, axes]."""

    def __init__(self, layout: Layout, axes: Projection, pooled: bool) -> None:
        super().__init__()
        self.layout, self.pooled = layout, pooled
        self.linear = _linear(axes.project.T, -(axes.mean @ axes.project))

    def forward(self, value: Tensor) -> Tensor:
        points = self.layout.points(value)
        rotated: Tensor = self.linear(points.mean(1, keepdim=True) if self.pooled else points)
        return rotated


class _Restore(nn.Module):
    """[B, positions, axes] -> [B, ...]."""

    def __init__(self, layout: Layout, axes: Projection) -> None:
        super().__init__()
        self.layout, self.linear = layout, _linear(axes.restore.T, axes.mean)

    def forward(self, coded: Tensor) -> Tensor:
        return self.layout.values(self.linear(coded))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.contiguous())
    return layer


def fold_head(head: Model, layouts: dict[str, Layout], axes: dict[str, Projection], *, pooled: bool = False) -> Model:
    """The head, then each feature's rotation: outputs of the same names, [batch, positions or 1, axes]."""
    module = head.copy_graph()
    output = module.graph.output_node()
    values = output.args[0]
    assert isinstance(values, tuple)
    with module.graph.inserting_before(output):
        rotated = []
        for index, (name, value) in enumerate(zip(head.output_names, values, strict=True)):
            module.add_submodule(f"rotate_{index}", _Rotate(layouts[name], axes[name], pooled))
            rotated.append(module.graph.call_module(f"rotate_{index}", (value,)))
    output.args = (tuple(rotated),)
    return _recaptured(head, module)


def fold_tail(tail: Model, head: Model, layouts: dict[str, Layout], axes: dict[str, Projection]) -> Model:
    """The inverse rotations, then the tail; its samples are the new head's answers."""
    module = tail.copy_graph()
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    for index, (name, place) in enumerate(zip(tail.example_inputs, places, strict=True)):
        module.add_submodule(f"restore_{index}", _Restore(layouts[name], axes[name]))
        with module.graph.inserting_before(places[-1].next):
            restored = module.graph.call_module(f"restore_{index}", (place,))
        place.replace_all_uses_with(restored, delete_user_cb=lambda user, own=restored: user is not own)
    dynamic = {
        spec.name: {dim: size for dim, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in head.output_specs
    }
    changed = replace(
        tail,
        example_inputs=head.forward(head.example_inputs),
        dynamic={name: dims for name, dims in dynamic.items() if dims},
        calibration=tuple(head.forward(sample) for sample in head.calibration),
        held_out=tuple(head.forward(sample) for sample in head.held_out),
    )
    return _recaptured(changed, module)


def _recaptured(model: Model, module: torch.fx.GraphModule) -> Model:
    """`model` with that graph, down to operators again."""
    module.graph.lint()
    module.recompile()
    return model.evolve_quietly(module=flatten(export_program(model, module)))


def distance(tail: Model, answer: Tensor, target: Tensor) -> Tensor:
    """How far an answer is from the target: the Kullback-Leibler divergence of a classifier's, else the squared error
    over the target's power."""
    if tail.postprocess is not None and tail.postprocess.kind == "classification":
        return functional.kl_div(answer.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)
    return (answer - target).square().mean() / target.square().mean().clamp_min(1e-12)


def refine(
    books: dict[str, Codebooks],
    tail: Model,
    coded: Sample,
    kept: Sequence[int],
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Codebooks], str]:
    """Codewords moved by the gradient of the tail's error (Adam, steps of `rate` of their root mean square), at a rate
    of the ladder drawn for each batch, so that one set of codebooks serves all of them.

    `coded`: by feature, [N, positions, axes]. The best epoch by the mean error over the ladder is kept, the start
    included, so that refining never makes it worse on the data that it sees. Also one line on what it gained.
    """
    with torch.no_grad():
        target = torch.cat([run_module(tail, part) for part in _batches(coded, batch)])
    best, before = books, _error(books, tail, coded, target, kept, batch)
    least = before
    generator = torch.Generator().manual_seed(seed)
    moved = {name: book.codewords.clone().requires_grad_() for name, book in books.items()}
    scale = min(float(value.detach().square().mean().sqrt()) for value in moved.values())
    steps = torch.optim.Adam(moved.values(), lr=rate * max(scale, 1e-9))
    count = len(target)
    for epoch in range(epochs):
        progress("refining codebooks", epoch, epochs)
        order = torch.randperm(count, generator=generator)
        for rows in torch.split(order, batch):
            units = kept[int(torch.randint(len(kept), (1,), generator=generator))]
            now = {name: replace(book, codewords=moved[name]) for name, book in books.items()}
            answer = run_module(tail, {name: _sent(now[name], coded[name][rows], units) for name in books})
            steps.zero_grad()
            distance(tail, answer, target[rows]).backward()  # type: ignore[no-untyped-call]
            steps.step()
        now = {name: replace(book, codewords=moved[name].detach().clone()) for name, book in books.items()}
        error = _error(now, tail, coded, target, kept, batch)
        if error < least:
            best, least = now, error
    progress("refining codebooks", epochs, epochs)
    return best, f"refined from {before:.4g} to {least:.4g} mean error of the tail"


def _sent(book: Codebooks, coded: Tensor, units: int) -> Tensor:
    """[N, positions, axes] after coding; gradients reach the codewords."""
    flat = coded.flatten(0, 1)
    with torch.no_grad():
        indices = book.encode(flat)
    return book.decode(indices, units).reshape(coded.shape)


def _error(
    books: dict[str, Codebooks], tail: Model, coded: Sample, target: Tensor, kept: Sequence[int], batch: int
) -> float:
    """The tail's mean error over a few rates of the ladder, from the finest to the coarsest."""
    some = kept[:: max(1, len(kept) // 4)]
    total = 0.0
    with torch.no_grad():
        indices = {name: book.encode(coded[name].flatten(0, 1)) for name, book in books.items()}
        for units in some:
            decoded = {n: book.decode(indices[n], units).reshape(coded[n].shape) for n, book in books.items()}
            answer = torch.cat([run_module(tail, part) for part in _batches(decoded, batch)])
            total += float(distance(tail, answer, target)) / len(some)
    return total


def _batches(values: Sample, batch: int) -> list[Sample]:
    count = len(next(iter(values.values())))
    return [{name: value[start : start + batch] for name, value in values.items()} for start in range(0, count, batch)]


def make_tables(book: Codebooks, coded: Tensor, kept: Sequence[int]) -> ResidualTables:
    """What the codec loads; frequencies are counted on `coded` [N, axes] with the codewords as rounded."""
    reach = max(float(coded.abs().max()), float(book.codewords.abs().max()), 1e-9)
    step = np.float32(reach * HEADROOM / LARGEST)
    codewords = (book.codewords / float(step)).round().clamp(-LARGEST, LARGEST)
    rounded = replace(book, codewords=codewords, prices=book.prices / float(step) ** 2)
    indices = rounded.encode(coded / float(step)).numpy()
    groups, stages, count, _ = book.codewords.shape
    frequencies = np.zeros((groups, stages, count), np.uint16)
    for group in range(groups):
        for stage in range(stages):
            frequencies[group, stage] = integer_table(np.bincount(indices[:, group, stage], minlength=count))
    return ResidualTables(
        codewords.numpy().astype(np.int16),
        np.clip(rounded.penalties.numpy(), 0, 2**32 - 1).astype(np.uint32),
        frequencies,
        np.array(book.units, np.uint8),
        np.array(kept, np.uint16),
        float(step),
    )
