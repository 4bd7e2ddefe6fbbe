"""Vision transformers cut in two: k vectors across the link, beside transform coding and the picture itself.

    python -m samples.benchmarks.split_vit

fashion-vit on 10,000 labelled test images: bytes are those of whole frames, every picture in one of its own; points
lost come with a paired 95 % interval. dinov2-small on its held-out views: cosine of the features, closed form alone.
Pooling inside the encoder (no split) is trained here, and timed beside the whole model.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgekit.devices.device import load_device
from edgekit.evaluation.intervals import share_difference
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.tokens import COUNTS, TokenBottleneck
from edgekit.passes.bottleneck.tokens_pass import PoolTokens, outputs_of
from edgekit.passes.bottleneck.transform import TransformCoding
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.codecs.frame import frame_size
from edgekit.runtimes.codecs.image import ImageCodec, fit_image_tables
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.dinov2 import dinov2_small
from edgekit.zoo.fashion import PREPROCESS, fashion_vit, normalize
from samples.benchmarks.common import environment, medians_ms, rounded, save
from samples.data import fashion_mnist

CUTS = ("blocks.1", "blocks.2", "blocks.3")
DINO_CUTS = ("encoder.layer.5", "encoder.layer.8", "encoder.layer.10")
POOLED = ((2, 8), (3, 4))
CHUNK, SIZED = 500, 1000

Row = dict[str, Any]


def run(model: Model, values: Tensor, chunk: int = CHUNK) -> Tensor:
    with torch.no_grad():
        return torch.cat([flatten_outputs(model.graph(part))[0] for part in torch.split(values, chunk)])


def frame_bytes(codec: Any, values: np.ndarray, rate: int) -> float:
    """The mean of the first thousand."""
    rows = [value[None] for value in values[:SIZED]]
    return sum(frame_size(len(codec.encode([row], rate)), [row.shape]) for row in rows) / len(rows)


def rates_of(squeezed: Squeezed, images: Tensor, chunk: int = CHUNK) -> list[tuple[Row, Tensor]]:
    """Bytes and vectors of each rate, and what the tail answers."""
    components = run(squeezed.head, images, chunk).numpy()
    codec = TransformCodec(squeezed.head.output_specs, squeezed.rates, squeezed.tables)
    found = []
    for rate in range(squeezed.rates):
        decoded = [
            codec.decode(codec.encode([part], rate), [part.shape], rate)[0]
            for part in np.array_split(components, -(-len(components) // chunk))
        ]
        row: Row = {"bytes": frame_bytes(codec, components, rate)}
        if codec.axis == 1:
            row["vectors"] = len(codec.layouts[rate].channels)
        found.append((row, run(squeezed.tail, torch.from_numpy(np.concatenate(decoded)), chunk)))
    return found


def lost(row: Row, answers: Tensor, whole: np.ndarray, labels: np.ndarray) -> Row:
    """Points of accuracy lost, with their paired interval."""
    difference = share_difference(whole, answers.argmax(1).numpy() == labels)
    points = [100 * value for value in (difference.value, difference.low, difference.high)]
    click.echo(
        f"  {row.get('vectors', '-')} vectors, {row['bytes']:.1f} bytes: {points[0]:+.2f} points lost "
        f"({points[1]:+.2f} to {points[2]:+.2f})"
    )
    return {**row, "points_lost": points[0], "low": points[1], "high": points[2]}


def of_pictures(model: Model, images: Tensor, whole: np.ndarray, labels: np.ndarray) -> dict[str, Row]:
    """The input itself: PNG, the image codec's lossless WebP, and JPEG."""
    tables = fit_image_tables(PREPROCESS.mean, PREPROCESS.std)
    codec = ImageCodec(model.input_specs, 6, tables)
    rows = {}
    for rate, name in ((0, "WebP, lossless"), (1, "JPEG 95"), (3, "JPEG 75"), (5, "JPEG 30")):
        values = images.numpy()
        decoded = np.concatenate(
            [codec.decode(codec.encode([row[None]], rate), [row[None].shape], rate)[0] for row in values]
        )
        click.echo(name)
        rows[name] = lost(
            {"bytes": frame_bytes(codec, values, rate)}, run(model, torch.from_numpy(decoded)), whole, labels
        )
    return rows


def png_bytes(pixels: np.ndarray) -> float:
    total = 0
    for picture in pixels[:SIZED]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
        total += frame_size(buffer.tell(), [(1, *picture.shape)])
    return total / min(SIZED, len(pixels))


def fashion(count: int) -> Row:
    data = fashion_mnist()
    model, _ = prepare(fashion_vit(), silent)
    images, labels = normalize(torch.from_numpy(data.test[:count])), data.test_labels[:count]
    whole = run(model, images).argmax(1).numpy() == labels
    entry: Row = {"accuracy": float(whole.mean()), "images": count, "png_bytes": png_bytes(data.test[:count])}
    entry["pictures"] = of_pictures(model, images, whole, labels)
    entry["cuts"] = {}
    for cut in CUTS:
        head, tail = split(model, [find_cut(model, cut)])
        entry["cuts"][cut] = {}
        for name, bottleneck in (
            ("tokens", TokenBottleneck()),
            ("tokens, closed form", TokenBottleneck(shipped=False)),
            ("transform", TransformCoding(rates=10)),
        ):
            squeezed = bottleneck.insert(head, tail)
            click.echo(f"{cut}, {name}: {squeezed.detail}")
            rows = [lost(row, answers, whole, labels) for row, answers in rates_of(squeezed, images)]
            entry["cuts"][cut][name] = {"detail": squeezed.detail, "rates": rows}
    return entry


def pooled(trained_on: int, count: int) -> list[Row]:
    """Accuracy and latency of fashion-vit with its tokens pooled inside, ONNX beside ONNX."""
    data, model = fashion_mnist(), fashion_vit()
    images, labels = normalize(torch.from_numpy(data.test[:count])), data.test_labels[:count]
    training = {"image": normalize(torch.from_numpy(data.train[:trained_on]))}
    whole = torch.cat([outputs_of(model, {"image": part})[0] for part in images.split(CHUNK)])
    hits = whole.argmax(1).numpy() == labels
    models, rows = {"whole": model}, []
    for block, vectors in POOLED:
        made = PoolTokens(vectors, block, epochs=0)(model)
        PoolTokens(vectors, block, epochs=2, batch=128).fit(model, made, training, silent)
        answers = torch.cat([outputs_of(made, {"image": part})[0] for part in images.split(CHUNK)])
        detail = made.history[-1].detail
        click.echo(detail)
        rows.append(lost({"detail": detail, "bytes": 0.0, "vectors": vectors}, answers, hits, labels))
        models[detail] = made
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls = {}
        one = {"image": images[:1].numpy()}
        for index, (name, made) in enumerate(models.items()):
            place = Path(folder) / str(index)
            place.mkdir()
            captured, _ = prepare(made, silent)
            artifact = OnnxExporter().export(captured, place, load_device("x86-server"))
            session = stack.enter_context(artifact.open(captured, SessionOptions(threads=1)))
            calls[name] = lambda session=session: session.run(one)
        times = medians_ms(calls)
    for row in rows:
        row.pop("bytes")
        row |= {"ms": times[row["detail"]], "of_whole": times[row["detail"]] / times["whole"]}
        click.echo(f"{row['detail']}: {row['ms']:.3f} ms, {row['of_whole']:.2f}x")
    return rows


def dinov2(cuts: Sequence[str], views: int) -> dict[str, list[Row]]:
    """Cosine of the features to those of the unsplit model."""
    model, _ = prepare(dinov2_small(), silent)
    images = torch.cat([sample["image"] for sample in model.held_out[:views]])
    wanted = run(model, images, 8)
    found = {}
    for cut in cuts:
        head, tail = split(model, [find_cut(model, cut)])
        rows = []
        squeezed = replace(TokenBottleneck(), counts=COUNTS, rates=5, errors=(1e-2, 0.1)).insert(head, tail)
        for row, answers in rates_of(squeezed, images, 8):
            cosine = torch.nn.functional.cosine_similarity(answers, wanted)
            rows.append({**row, "cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min())})
            click.echo(f"{cut}: {rows[-1]}")
        found[cut] = rows
    return found


@click.command(help=__doc__)
@click.option("--images", type=click.IntRange(500, 10_000), default=10_000, show_default=True)
@click.option("--trained-on", type=click.IntRange(100, 60_000), default=12_000, show_default=True, help="When pooling.")
@click.option("--views", type=click.IntRange(2), default=32, show_default=True, help="Of dinov2-small.")
@click.option("--dino/--no-dino", default=True)
@click.option("--pool/--no-pool", default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(images: int, trained_on: int, views: int, dino: bool, pool: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    results: Row = {"fashion-vit": fashion(images)}
    if pool:
        results["pooled"] = pooled(trained_on, images)
    if dino:
        results["dinov2-small"] = dinov2(DINO_CUTS, views)
    click.echo(save("split_vit", rounded({**environment(threads), **results})))


if __name__ == "__main__":
    main()
