"""Stages built for the tiers that they run on, through the same gate as whole models, and ladders between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.bundle.manifest import Rate, TensorEntry
from edgekit.candidates import Bench
from edgekit.costs.from_torch import CONVOLUTIONS, PRODUCTS, VIEWS, operator_name
from edgekit.devices.device import Device, load_device
from edgekit.errors import DeviceError
from edgekit.ladders import Arrays, Ladder, measure_ladder
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, Quality, judge, run_session
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.programs import add_torch_program
from edgekit.quantization import Fallback
from edgekit.registry import EXPORTERS
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.session import SessionOptions
from edgekit.selection import Built, Candidate, choose
from edgekit.tensors import TensorSpec

SERVER_FORMAT = "onnx"  # batches of any size, and every server runs it
LINEAR = CONVOLUTIONS | PRODUCTS | VIEWS | {"add", "sub", "transpose", "permute", "t"}


@dataclass(frozen=True)
class TierBench:
    """`whole` is the bench of the whole model on the device, `winner` what came of it there. `with_programs`: parts for
    servers bring what the torch engine compiles."""

    whole: Bench
    winner: Built
    max_drop: float
    with_programs: bool = False

    def heads(self, head: Model, slug: str) -> list[Built]:
        """The head on the device: in the winner's format as the winner is quantized, else in float."""
        format, precision = self.winner.candidate.format, self.winner.candidate.precision
        bench = self.stage_bench(head, self.whole.device, slug)
        exporter = EXPORTERS.load(format)()
        fp32 = bench.build(Candidate(format, "fp32"), exporter)
        built = [fp32]
        if precision != "fp32":
            built.append(bench.build(Candidate(format, precision), exporter))
        if fp32.error is not None:
            raise fp32.error
        winner = choose(built, self.whole.device)[0]
        return [winner] if winner.candidate.precision == "fp32" else [winner, fp32]

    def on_server(self, model: Model, server: Device) -> Built:
        """In float: the servers have the memory, and their answers are what the device's are judged by."""
        bench = self.stage_bench(model, server, "server")
        built = bench.build(Candidate(SERVER_FORMAT, "fp32", asked=True), EXPORTERS.load(SERVER_FORMAT)())
        if built.error is not None:
            raise built.error
        return add_torch_program(bench, built) if self.with_programs else built

    def stage_bench(self, model: Model, device: Device, slug: str) -> Bench:
        options = self.whole.options
        cache = options.cache_dir / slug if options.cache_dir is not None else None
        keep = tuple(
            Fallback(layer, "float32", "its output is what the codec quantizes") for layer in linear_ending(model)
        )
        folder = self.whole.folder / slug
        folder.mkdir(exist_ok=True)
        return replace(
            self.whole,
            model=model,
            device=device,
            options=replace(options, cache_dir=cache),
            folder=folder,
            keep=keep if model.postprocess is None else (),
            original=None,
            _quantized={},
            _segments={},
            _simulated=[],
        )

    def checkpoint(self, name: str) -> Path | None:
        cache = self.whole.options.cache_dir
        return cache / name if cache is not None else None

    def features(self, head: Built, samples: Sequence[Sample]) -> list[Arrays]:
        assert head.artifact is not None
        names = head.model.output_names
        with head.artifact.open(head.model, SessionOptions(threads=self.whole.threads)) as session:
            rows = [session.run({key: value.numpy() for key, value in sample.items()}) for sample in samples]
        return [[row[name] for name in names] for row in rows]

    def simulated_ladder(self, squeezed: Squeezed) -> Ladder:
        """Head and tail in torch, before anything is lowered."""
        names = squeezed.head.output_names
        features = [
            [value.numpy() for value in (squeezed.head.forward(sample)[name] for name in names)]
            for sample in self.whole.samples
        ]

        def finish(decoded: Sequence[Arrays]) -> Outputs:
            rows = [
                squeezed.tail.forward(
                    {key: torch.from_numpy(np.array(value)) for key, value in zip(names, arrays, strict=True)}
                )
                for arrays in decoded
            ]
            return {key: np.concatenate([row[key].numpy() for row in rows]) for key in rows[0]}

        codec = open_codec(
            codec_entry("trial", squeezed.kind, squeezed.tables, squeezed.head.output_specs, squeezed.rates),
            squeezed.tables,
        )
        return measure_ladder(features, codec, finish, self._judge, self.max_drop)

    def ladder(self, features: Sequence[Arrays], entry: CodecEntry, tables: bytes | None, tail: Built) -> Ladder:
        codec: Codec = open_codec(entry, tables)
        artifact = tail.artifact
        assert artifact is not None
        names = list(tail.model.example_inputs)
        with artifact.open(tail.model, SessionOptions(threads=self.whole.threads)) as session:

            def finish(decoded: Sequence[Arrays]) -> Outputs:
                samples: list[Sample] = [
                    {name: torch.from_numpy(np.array(array)) for name, array in zip(names, arrays, strict=True)}
                    for arrays in decoded
                ]
                return run_session(session, samples)

            return measure_ladder(features, codec, finish, self._judge, self.max_drop)

    def _judge(self, outputs: Outputs) -> Quality:
        return judge(self.whole.model, self.whole.yardstick, outputs)


def codec_entry(name: str, kind: str, tables: bytes | None, features: Sequence[TensorSpec], rates: int) -> CodecEntry:
    """The manifest's entry, its rates not yet measured."""
    return CodecEntry(
        name=name,
        kind=kind,
        features=tuple(TensorEntry.of(spec) for spec in features),
        tables=f"codec-{name}.bin" if tables is not None else None,
        rates=(Rate(bytes_mean=0, bytes_p95=0, drop=0),) * rates,
    )


def linear_ending(model: Model) -> tuple[str, ...]:
    """The nodes from the last non-linearity or addition to the model's outputs: a bottleneck's encoder and the layer
    that it is merged with. An 8-bit grid for all of them would drown the small components."""
    found: list[str] = []
    for end in model.graph.graph.output_node().all_input_nodes:
        node = end
        while node.op == "call_function" and operator_name(node) in LINEAR:
            found.append(node.name)
            values = [source for source in node.all_input_nodes if source.op != "get_attr"]
            if len(values) != 1:
                break
            node = values[0]
    return tuple(found)


def server_profile(reference: str) -> Device:
    """Raises DeviceError for a profile that cannot run ONNX."""
    device = load_device(reference)
    if SERVER_FORMAT not in device.formats:
        raise DeviceError(
            f"{device.name} cannot serve: it does not run {SERVER_FORMAT}", hint="x86-server and the Jetsons do"
        )
    return device


def slug_of(name: str) -> str:
    """A cut's name as part of a part's: lower-case letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
