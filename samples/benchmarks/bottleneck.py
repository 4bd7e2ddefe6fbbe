"""Rate against agreement of EfficientNet-Lite0's bottlenecks, beside JPEG of the input, on the same held-out views.

    python -m samples.benchmarks.bottleneck

Bytes are those of whole frames on the wire, every picture in one of its own. `wheels`: 16 views of each of the four
held-out photographs of the scikit-image and scikit-learn wheels; `debian`: views of the held-out photographs of
Debian's packages. Nothing of either was calibrated or trained on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.coders import load_trained, pretrained
from edgekit.passes.bottleneck.learned import squeeze
from edgekit.passes.bottleneck.transform import TransformCoding
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.codecs.frame import frame_size
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.preprocess import normalize
from edgekit.zoo.efficientnet import PREPROCESS, efficientnet_lite0
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph, views
from samples.benchmarks.common import environment, rounded, save
from samples.data import photographs, split_photographs

CUTS = ("blocks.6", "blocks.10", "blocks.14", "blocks.15")
QUALITIES = (95, 90, 75, 60, 50, 40, 30, 20, 10)
CHUNK = 32

Sets = dict[str, Tensor]
Row = dict[str, Any]


def held_out(per_photograph: int) -> Sets:
    wheels = [photograph(name) for name in HELD_OUT]
    others = [path for path in split_photographs(photographs())[1] if path not in wheels]
    return {
        "wheels": torch.cat([view for path in wheels for view in views(path, PREPROCESS, 16)]),
        "debian": torch.cat([view for path in others for view in views(path, PREPROCESS, per_photograph)]),
    }


def calibration(per_photograph: int) -> list[Tensor]:
    """Views of all photographs that may be calibrated on: 16 of those of the wheels, fewer of Debian's."""
    wheels = [photograph(name) for name in CALIBRATION]
    found = []
    for path in split_photographs(photographs())[0]:
        found += views(path, PREPROCESS, 16 if path in wheels else per_photograph)
    return found


def run(model: Model, values: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([flatten_outputs(model.graph(part))[0] for part in values.split(CHUNK)])


def through_jpeg(images: Tensor, quality: int) -> tuple[float, Tensor]:
    """Mean bytes of a frame that carries the JPEG, and the decoded images."""
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (PREPROCESS.mean, PREPROCESS.std))
    pixels = (images * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    size, decoded = 0, []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
        size += frame_size(buffer.tell(), [(1, *picture.shape)])
        decoded.append(torch.from_numpy(normalize(np.asarray(Image.open(buffer)), PREPROCESS)))
    return size / len(pixels), torch.cat(decoded)


def through_codec(codec: TransformCodec, components: Tensor, rate: int) -> tuple[float, Tensor]:
    size, decoded = 0, []
    for row in components.split(1):
        payload = codec.encode([row.numpy()], rate)
        shape = tuple(row.shape)
        size += frame_size(len(payload), [shape])
        decoded.append(torch.from_numpy(codec.decode(payload, [shape], rate)[0]))
    return size / len(components), torch.cat(decoded)


def curve(squeezed: Squeezed, sets: Sets, wanted: Sets) -> list[Row]:
    codec = TransformCodec(squeezed.head.output_specs, squeezed.rates, squeezed.tables)
    components = {name: run(squeezed.head, sets[name]) for name in sets}
    rows = []
    for rate in range(squeezed.rates):
        row: Row = {"rate": rate}
        for name, values in components.items():
            size, decoded = through_codec(codec, values, rate)
            row[name] = judge(size, run(squeezed.tail, decoded), wanted[name])
        rows.append(row)
        click.echo("  " + told(row))
    return rows


def judge(size: float, answers: Tensor, wanted: Tensor) -> Row:
    noise = (answers - wanted).square().sum()
    return {
        "bytes": size,
        "agreement": float((answers.argmax(1) == wanted.argmax(1)).float().mean()),
        "sqnr_db": float(10 * torch.log10(wanted.square().sum() / noise)),
    }


def told(row: Row) -> str:
    return ", ".join(
        f"{name} {value['bytes']:.0f} bytes -> {value['agreement']:.3f}, {value['sqnr_db']:.1f} dB"
        for name, value in row.items()
        if isinstance(value, dict)
    )


def smallest_ratio(ours: Sequence[Row], jpeg: Sequence[Row], name: str) -> float | None:
    """Of JPEG's bytes over ours, the smallest at any agreement that JPEG reaches; None where it reaches none of ours.

    JPEG's best at an agreement: its cheapest quality that is as good.
    """
    ratios = []
    for row in ours:
        good = [j[name]["bytes"] for j in jpeg if j[name]["agreement"] >= row[name]["agreement"]]
        if good and row[name]["agreement"] >= min(j[name]["agreement"] for j in jpeg):
            ratios.append(min(good) / row[name]["bytes"])
    return min(ratios) if ratios else None


@click.command(help=__doc__)
@click.option("--views-each", type=click.IntRange(1, 16), default=4, show_default=True, help="Of a Debian photograph.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(views_each: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, _ = prepare(efficientnet_lite0(), silent)
    sets = held_out(views_each)
    wanted = {name: run(model, values) for name, values in sets.items()}
    jpeg = []
    for quality in QUALITIES:
        row: Row = {"quality": quality}
        for name, values in sets.items():
            size, decoded = through_jpeg(values, quality)
            row[name] = judge(size, run(model, decoded), wanted[name])
        jpeg.append(row)
        click.echo(f"JPEG {quality}: {told(row)}")
    samples = tuple({"image": view} for view in calibration(8))
    wide = replace(model, calibration=samples)
    results: dict[str, Any] = {"jpeg": jpeg, "cuts": {}}
    for cut in CUTS:
        head, tail = split(wide, [find_cut(wide, cut)])
        entry: dict[str, Any] = {
            "head_parameters": find_cut(wide, cut).head_parameters,
            "shape": list(next(iter(tail.example_inputs.values())).shape[1:]),
        }
        click.echo(f"{cut}, training-free")
        entry["training-free"] = curve(TransformCoding().insert(head, tail), sets, wanted)
        stored = pretrained(head, tail)
        if stored is not None:
            click.echo(f"{cut}, learned")
            squeezed = squeeze(head, tail, load_trained(stored, head, tail), stored.stem)
            entry["learned"] = curve(squeezed, sets, wanted)
            entry["learned_head_parameters"] = sum(value.numel() for value in squeezed.head.graph.parameters())
            entry["jpeg_over_learned"] = {name: smallest_ratio(entry["learned"], jpeg, name) for name in sets}
        entry["jpeg_over_training-free"] = {name: smallest_ratio(entry["training-free"], jpeg, name) for name in sets}
        results["cuts"][cut] = entry
    path = save(
        "bottleneck",
        rounded(
            {
                **environment(threads, ("torch", "constriction")),
                "samples": {name: len(values) for name, values in sets.items()},
                "calibration_views": len(samples),
                **results,
            }
        ),
    )
    click.echo(path)


if __name__ == "__main__":
    main()
