"""The split flow: cuts worth having, a bottleneck at each, an artifact for each tier, every rate measured end to end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.bundle.manifest import Preprocess, TensorEntry, Tier, Variant
from edgekit.candidates import Bench
from edgekit.devices.device import Device, load_device
from edgekit.errors import DeviceError, EdgekitError, PlanError, UnknownNameError
from edgekit.ladders import Arrays, Ladder, measure_ladder
from edgekit.model import Model, Sample
from edgekit.parity import Outputs, Quality, judge, run_session
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.partition.candidates import cuts as candidate_cuts
from edgekit.passes.partition.problem import worthwhile_cuts
from edgekit.passes.partition.split import split
from edgekit.passes.partition.stages import Cut
from edgekit.quantization import Fallback
from edgekit.quantizers.anatomy import weighted_layers
from edgekit.recipe import Recipe
from edgekit.registry import BOTTLENECKS, EXPORTERS
from edgekit.report.model import SplitRow
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.codecs.image import fit_image_tables
from edgekit.runtimes.session import SessionOptions
from edgekit.selection import Built, Candidate, Packed, choose
from edgekit.split_outcome import SplitOutcome

SERVER_FORMAT = "onnx"  # batches of any size, and every server runs it
IMAGE_RATES = 6
PLAIN_RATES = 2


@dataclass
class Splitter:
    """One export's splitting. `bench` is the whole model's on the device, `winner` what came of it there."""

    recipe: Recipe
    bench: Bench
    winner: Built

    @property
    def model(self) -> Model:
        return self.bench.model

    @cached_property
    def tier(self) -> Tier:
        """Where the first part above the device runs."""
        return "edge" if self.recipe.edge else "cloud"

    @cached_property
    def server(self) -> Device:
        return _server(self.recipe.edge or self.recipe.cloud or "")

    def run(self) -> SplitOutcome:
        """Raises PlanError where cuts were asked for by name and none of them meets the limits."""
        whole = self._on_server(self.model, self.server)
        outcome = SplitOutcome(packed=(Packed("whole", whole, self.tier),)) + self._offload(whole)
        if self.recipe.split == "none":
            return outcome
        refused: list[str] = []
        kept = 0
        for cut in self._cuts():
            try:
                outcome += self._at(cut)
                kept += 1
            except EdgekitError as error:
                if self.recipe.split != "auto" and not isinstance(error, PlanError):
                    raise
                refused.append(f"cut {cut.name}: {error.message}")
        if not kept and self.recipe.split != "auto":
            raise PlanError(
                "; ".join(refused), binding="max_drop", hint="raise --max-drop, --train the bottleneck, or another cut"
            )
        return outcome + SplitOutcome(notes=tuple(refused))

    def _cuts(self) -> tuple[Cut, ...]:
        if self.recipe.split == "auto":
            return worthwhile_cuts(self.model, self.bench.device, self.server)
        known = {cut.name: cut for cut in candidate_cuts(self.model)}
        names = [name.strip() for name in self.recipe.split.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise UnknownNameError("cut", name, known)
        return tuple(known[name] for name in names)

    def _offload(self, whole: Built) -> SplitOutcome:
        """The whole model above the device, its input sent as a picture or as it is."""
        model, name = self.model, "input"
        prepared = model.preprocess
        if isinstance(prepared, Preprocess):
            kind, rates = "image", IMAGE_RATES
            tables: bytes | None = fit_image_tables(prepared.mean, prepared.std, prepared.layout)
        else:
            kind, rates, tables = "plain", PLAIN_RATES, None
        codec = _codec(name, kind, tables, model, rates)
        features = [[value.numpy() for value in sample.values()] for sample in self.bench.samples]
        ladder = self._ladder(features, codec, tables, whole)
        return SplitOutcome(
            codecs=(replace_rates(codec, ladder),),
            tables={codec.tables: tables} if codec.tables and tables is not None else {},
            variants=(Variant(name="offload", parts=("whole",), codecs=(name,)),),
            rows=_rows("offload", name, ladder),
        )

    def _at(self, cut: Cut) -> SplitOutcome:
        """Head on the device, tail above, a bottleneck between. Raises PlanError where no rate keeps the limit."""
        self.bench.progress(f"cut at {cut.name}", 0, 0)
        head, tail = split(self.model, [cut])
        slug = _slug(cut.name)
        best: tuple[float, Squeezed, str] | None = None
        tried: list[str] = []
        for name, bottleneck in self._bottlenecks(head, tail):
            checkpoint = self._checkpoint(f"{name}-{slug}")
            squeezed = bottleneck.insert(head, tail, checkpoint=checkpoint, progress=self.bench.progress)
            ladder = self._simulated_ladder(squeezed)
            rung = ladder.within(self.recipe.max_drop)
            if rung is None:
                tried.append(f"{name} loses {ladder.rates[0].drop:.2f} points at its finest rate")
                continue
            size = ladder.rates[rung].bytes_mean
            if best is None or size < best[0]:
                best = (size, squeezed, name)
        if best is None:
            raise PlanError(
                f"{', '.join(tried)}, allowed {self.recipe.max_drop:g}",
                binding="max_drop",
                hint="raise --max-drop or train the bottleneck with --train DIR",
            )
        _, squeezed, kind = best
        return self._pack(cut, slug, squeezed, kind)

    def _bottlenecks(self, head: Model, tail: Model) -> list[tuple[str, Bottleneck]]:
        """Those to try, by name; a trained one only with data or a checkpoint that fits."""
        from edgekit.passes.bottleneck.learned import LearnedBottleneck, pretrained

        wanted = self.recipe.bottleneck
        trainable = self.recipe.train is not None or pretrained(head, tail) is not None
        names = [wanted] if wanted != "auto" else ["transform", *(["learned"] if trainable else [])]
        made: list[tuple[str, Bottleneck]] = []
        for name in names:
            kind: type[Bottleneck] = BOTTLENECKS.load(name)
            if kind is LearnedBottleneck:
                made.append((name, LearnedBottleneck(train=self.recipe.train, epochs=self.recipe.epochs)))
            else:
                made.append((name, kind()))
        return made

    def _pack(self, cut: Cut, slug: str, squeezed: Squeezed, kind: str) -> SplitOutcome:
        name, codec_name = f"split-{slug}", f"feature-{slug}"
        head_model = squeezed.head.evolve_quietly(name=f"{self.model.name}-head-{slug}", postprocess=None)
        tail_model = squeezed.tail.evolve_quietly(name=f"{self.model.name}-tail-{slug}")
        tail = self._on_server(tail_model, self.server)
        codec = _codec(codec_name, squeezed.kind, squeezed.tables, head_model, squeezed.rates)
        refusals: list[str] = []
        for head in self._heads(head_model, slug):
            features = self._features(head)
            ladder = self._ladder(features, codec, squeezed.tables, tail)
            if ladder.within(self.recipe.max_drop) is not None:
                break
            refusals.append(f"{head.candidate} head loses {ladder.rates[0].drop:.2f} points")
        else:
            raise PlanError(f"{', '.join(refusals)}, allowed {self.recipe.max_drop:g}", binding="max_drop")
        parts = (f"head-{slug}", f"tail-{slug}")
        outcome = SplitOutcome(
            packed=(Packed(parts[0], head), Packed(parts[1], tail, self.tier)),
            codecs=(replace_rates(codec, ladder),),
            tables={codec.tables: squeezed.tables} if codec.tables and squeezed.tables is not None else {},
            variants=(Variant(name=name, parts=parts, codecs=(codec_name,)),),
            rows=_rows(name, codec_name, ladder),
            notes=(f"cut {cut.name}: {squeezed.detail}",),
        )
        return outcome

    def _heads(self, head: Model, slug: str) -> list[Built]:
        """The head on the device: in the winner's format as the winner is quantized, else in float."""
        format, precision = self.winner.candidate.format, self.winner.candidate.precision
        bench = self._stage_bench(head, self.bench.device, slug)
        exporter = EXPORTERS.load(format)()
        fp32 = bench.build(Candidate(format, "fp32"), exporter)
        built = [fp32]
        if precision != "fp32":
            built.append(bench.build(Candidate(format, precision), exporter))
        if fp32.error is not None:
            raise fp32.error
        winner = choose(built, self.bench.device)[0]
        return [winner] if winner.candidate.precision == "fp32" else [winner, fp32]

    def _on_server(self, model: Model, server: Device) -> Built:
        """In float: the servers have the memory, and their answers are what the device's are judged by."""
        bench = self._stage_bench(model, server, "server")
        built = bench.build(Candidate(SERVER_FORMAT, "fp32", asked=True), EXPORTERS.load(SERVER_FORMAT)())
        if built.error is not None:
            raise built.error
        return built

    def _stage_bench(self, model: Model, device: Device, slug: str) -> Bench:
        options = self.bench.options
        cache = options.cache_dir / slug if options.cache_dir is not None else None
        keep = tuple(
            Fallback(layer, "float32", "its output is what the codec quantizes") for layer in last_layers(model)
        )
        folder = self.bench.folder / slug
        folder.mkdir(exist_ok=True)
        return replace(
            self.bench,
            model=model,
            device=device,
            options=replace(options, cache_dir=cache),
            folder=folder,
            keep=keep if model.postprocess is None else (),
            _quantized={},
            _segments={},
            _simulated=[],
        )

    def _checkpoint(self, name: str) -> Path | None:
        cache = self.bench.options.cache_dir
        return cache / name if cache is not None else None

    def _features(self, head: Built) -> list[Arrays]:
        assert head.artifact is not None
        names = head.model.output_names
        with head.artifact.open(head.model, SessionOptions(threads=self.bench.threads)) as session:
            rows = [session.run({key: value.numpy() for key, value in sample.items()}) for sample in self.bench.samples]
        return [[row[name] for name in names] for row in rows]

    def _simulated_ladder(self, squeezed: Squeezed) -> Ladder:
        """Head and tail in torch, before anything is lowered."""
        names = squeezed.head.output_names
        features = [
            [value.numpy() for value in (squeezed.head.forward(sample)[name] for name in names)]
            for sample in self.bench.samples
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
            _codec("trial", squeezed.kind, squeezed.tables, squeezed.head, squeezed.rates), squeezed.tables
        )
        return measure_ladder(features, codec, finish, self._judge, self.recipe.max_drop)

    def _ladder(self, features: Sequence[Arrays], entry: CodecEntry, tables: bytes | None, tail: Built) -> Ladder:
        codec: Codec = open_codec(entry, tables)
        artifact = tail.artifact
        assert artifact is not None
        names = list(tail.model.example_inputs)
        with artifact.open(tail.model, SessionOptions(threads=self.bench.threads)) as session:

            def finish(decoded: Sequence[Arrays]) -> Outputs:
                samples: list[Sample] = [
                    {name: torch.from_numpy(np.array(array)) for name, array in zip(names, arrays, strict=True)}
                    for arrays in decoded
                ]
                return run_session(session, samples)

            return measure_ladder(features, codec, finish, self._judge, self.recipe.max_drop)

    def _judge(self, outputs: Outputs) -> Quality:
        return judge(self.model, self.bench.reference, outputs)


def last_layers(model: Model) -> tuple[str, ...]:
    """The weighted layers whose values are the model's outputs, with nothing but data movement in between."""
    layers = {layer.node.name for layer in weighted_layers(model.graph)}
    found: list[str] = []
    for node in model.graph.graph.output_node().all_input_nodes:
        while node.name not in layers and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        if node.name in layers:
            found.append(node.name)
    return tuple(found)


def replace_rates(codec: CodecEntry, ladder: Ladder) -> CodecEntry:
    return codec.model_copy(update={"rates": ladder.rates})


def _codec(name: str, kind: str, tables: bytes | None, head: Model, rates: int) -> CodecEntry:
    """The manifest's entry, rates not yet measured; the features are the head's outputs, or the whole model's inputs."""
    from edgekit.bundle.manifest import Rate

    specs = head.input_specs if kind in ("image", "plain") else head.output_specs
    return CodecEntry(
        name=name,
        kind=kind,
        features=tuple(TensorEntry.of(spec) for spec in specs),
        tables=f"codec-{name}.bin" if tables is not None else None,
        rates=(Rate(bytes_mean=0, bytes_p95=0, drop=0),) * rates,
    )


def _rows(variant: str, codec: str, ladder: Ladder) -> tuple[SplitRow, ...]:
    return tuple(
        SplitRow(
            variant=variant,
            codec=codec,
            rate=index,
            bytes_mean=rate.bytes_mean,
            bytes_p95=rate.bytes_p95,
            drop=rate.drop,
            agreement=rate.agreement,
        )
        for index, rate in enumerate(ladder.rates)
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def _server(reference: str) -> Device:
    """Raises DeviceError for a profile that cannot run ONNX."""
    device = load_device(reference)
    if SERVER_FORMAT not in device.formats:
        raise DeviceError(
            f"{device.name} cannot serve: it does not run {SERVER_FORMAT}", hint="x86-server and the Jetsons do"
        )
    return device
