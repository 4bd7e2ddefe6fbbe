"""The split flow: cuts worth having, a bottleneck at each, an artifact a tier, every rate measured end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from edgekit.bundle.manifest import Preprocess, Tier, Variant
from edgekit.candidates import Bench
from edgekit.cascades import cascade
from edgekit.devices.device import Device
from edgekit.errors import DataError, ExportError, PlanError, QualityError, SessionError, UnknownNameError, UsageError
from edgekit.ladders import Arrays
from edgekit.model import Model
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.bottleneck.coders import pretrained
from edgekit.passes.bottleneck.information import answers_of, information_plane, receive
from edgekit.passes.bottleneck.learning import learns
from edgekit.passes.bottleneck.tokens_checkpoint import PREFIX as TOKENS
from edgekit.passes.partition.candidates import cuts as candidate_cuts
from edgekit.passes.partition.split import split
from edgekit.passes.partition.stages import Cut
from edgekit.passes.partition.worthwhile import worthwhile_cuts
from edgekit.recipe import Recipe
from edgekit.registry import BOTTLENECKS
from edgekit.runtimes.codecs.image import fit_image_tables
from edgekit.runtimes.preprocess import sample_files
from edgekit.selection import Built, Packed
from edgekit.split_outcome import SplitOutcome
from edgekit.three_tiers import three_tiers
from edgekit.tier_bench import TierBench, codec_entry, server_profile, slug_of

IMAGE_RATES = 6
FEWEST_SAMPLES = 2
# What speaks against one cut and not against the export.
CANNOT_CUT = (PlanError, ExportError, QualityError, SessionError)
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
    def tiers(self) -> TierBench:
        return TierBench(self.bench, self.winner, self.recipe.max_drop, self.recipe.engine == "torch")

    @cached_property
    def tier(self) -> Tier:
        """Where the first part above the device runs."""
        return "edge" if self.recipe.edge else "cloud"

    @cached_property
    def server(self) -> Device:
        return server_profile(self.recipe.edge or self.recipe.cloud or "")

    def run(self) -> SplitOutcome:
        """Raises PlanError where cuts were asked for by name and none of them meets the limits."""
        whole = self.tiers.on_server(self.model.evolve_quietly(name=f"{self.model.name}-whole"), self.server)
        outcome = SplitOutcome(packed=(Packed("whole", whole, self.tier),)) + self._offload(whole)
        if self.recipe.split == "none":
            return outcome
        refused: list[str] = []
        kept = 0
        for cut in self._cuts():
            try:
                kind, squeezed = self._squeeze(cut)
                outcome += self._pack(cut, kind, squeezed)
                if self.recipe.report:
                    outcome += self._information(cut, squeezed)
                if not kept and self.recipe.edge and self.recipe.cloud:
                    cloud = server_profile(self.recipe.cloud)
                    outcome += three_tiers(self.tiers, slug_of(cut.name), squeezed, self.server, cloud)
                kept += 1
            except CANNOT_CUT as error:
                if self.recipe.split != "auto" and not isinstance(error, PlanError):
                    raise
                refused.append(f"cut {slug_of(cut.name)}: {error.message}")
        if not kept and self.recipe.split != "auto":
            raise PlanError(
                "; ".join(refused), binding="max_drop", hint="raise --max-drop, --train the bottleneck, or another cut"
            )
        return outcome + SplitOutcome(notes=tuple(refused))

    def _cuts(self) -> tuple[Cut, ...]:
        if self.recipe.split == "auto":
            return worthwhile_cuts(self.model, self.bench.device, self.server)
        return named_cuts(self.model, self.recipe.split)

    def _offload(self, whole: Built) -> SplitOutcome:
        """The whole model above the device, its input sent as a picture or as it is."""
        model, name = self.model, "input"
        prepared = model.preprocess
        if isinstance(prepared, Preprocess):
            kind, rates = "image", IMAGE_RATES
            tables: bytes | None = fit_image_tables(prepared.mean, prepared.std, prepared.layout)
        else:
            kind, rates, tables = "plain", PLAIN_RATES, None
        codec = codec_entry(name, kind, tables, model.input_specs, rates)
        features = [[value.numpy() for value in sample.values()] for sample in self.bench.samples]
        ladder = self.tiers.ladder(features, codec, tables, whole)
        return SplitOutcome(
            codecs=(ladder.of(codec),),
            tables={codec.tables: tables} if codec.tables and tables is not None else {},
            variants=(Variant(name="offload", parts=("whole",), codecs=(name,)),),
            rows=ladder.rows("offload", name),
        )

    def _squeeze(self, cut: Cut) -> tuple[str, Squeezed]:
        """The bottleneck that sends least within the limit, and its name. Raises PlanError where none keeps it."""
        self.bench.progress(f"cut at {cut.name}", 0, 0)
        head, tail = split(self.model, [cut])
        best: tuple[float, Squeezed, str] | None = None
        tried: list[str] = []
        for name, bottleneck in self._bottlenecks(head, tail):
            checkpoint = self.tiers.checkpoint(f"{name}-{slug_of(cut.name)}")
            try:
                squeezed = bottleneck.insert(head, tail, checkpoint=checkpoint, progress=self.bench.progress)
            except PlanError as error:
                tried.append(f"{name}: {error.message}")
                continue
            ladder = self.tiers.simulated_ladder(squeezed)
            rung = ladder.within(self.recipe.max_drop)
            if rung is None:
                lost = f"{ladder.rates[0].drop:.3g} points at its finest rate, allowed {self.recipe.max_drop:g}"
                tried.append(f"{name} loses {lost}")
                continue
            size = ladder.rates[rung].bytes_mean
            if best is None or size < best[0]:
                best = (size, squeezed, name)
        if best is None:
            raise PlanError(
                "; ".join(tried),
                binding="max_drop",
                hint="raise --max-drop or train the bottleneck with --train DIR",
            )
        return best[2], best[1]

    def _bottlenecks(self, head: Model, tail: Model) -> list[tuple[str, Bottleneck]]:
        """Those to try, by name; a trained one only with data or a checkpoint that fits."""
        wanted = self.recipe.bottleneck
        trainable = self.recipe.train is not None or pretrained(head, tail) is not None
        known = pretrained(head, tail, prefix=TOKENS) is not None
        usual = ["transform", *(["learned"] if trainable else []), *(["tokens"] if known else [])]
        names = [wanted] if wanted != "auto" else usual
        made: list[tuple[str, Bottleneck]] = []
        for name in names:
            kind = BOTTLENECKS.load(name)
            if learns(kind):
                folder = Path(self.recipe.train) if self.recipe.train is not None else None
                epochs = self.recipe.epochs or kind.epochs
                made.append((name, kind(train=folder, epochs=epochs, seed=self.recipe.seed)))
            else:
                made.append((name, kind()))
        return made

    def _pack(self, cut: Cut, kind: str, squeezed: Squeezed) -> SplitOutcome:
        """Head on the device, tail above, a bottleneck between. Raises PlanError where the artifacts miss the limit."""
        slug = slug_of(cut.name)
        name, codec_name = f"split-{slug}", f"feature-{slug}"
        head_model = squeezed.head.evolve_quietly(name=f"{self.model.name}-head-{slug}", postprocess=None)
        tail_model = squeezed.tail.evolve_quietly(name=f"{self.model.name}-tail-{slug}")
        tail = self.tiers.on_server(tail_model, self.server)
        codec = codec_entry(codec_name, squeezed.kind, squeezed.tables, head_model.output_specs, squeezed.rates)
        refusals: list[str] = []
        for head in self.tiers.heads(head_model, slug):
            features = self.tiers.features(head, self.bench.samples)
            ladder = self.tiers.ladder(features, codec, squeezed.tables, tail)
            if ladder.within(self.recipe.max_drop) is not None:
                break
            refusals.append(f"{head.candidate} head loses {ladder.rates[0].drop:.2f} points")
        else:
            raise PlanError(f"{', '.join(refusals)}, allowed {self.recipe.max_drop:g}", binding="max_drop")
        parts = (f"head-{slug}", f"tail-{slug}")
        outcome = SplitOutcome(
            packed=(Packed(parts[0], head), Packed(parts[1], tail, self.tier)),
            codecs=(ladder.of(codec),),
            tables={codec.tables: squeezed.tables} if codec.tables and squeezed.tables is not None else {},
            variants=(Variant(name=name, parts=parts, codecs=(codec_name,)),),
            rows=ladder.rows(name, codec_name),
            notes=(f"cut {slug}, {kind}: {squeezed.detail}",),
        )
        outcome += self._raw(slug, parts, head_model, features, tail)
        return outcome + cascade(self.tiers, head_model, slug, parts, codec_name)

    def _information(self, cut: Cut, squeezed: Squeezed) -> SplitOutcome:
        """What the features know of input and answer at three rates of the ladder."""
        samples = self.bench.samples
        self.bench.progress(f"cut at {cut.name}: information", 0, 0)
        inputs = torch.cat([torch.cat([value.float().flatten(1) for value in one.values()], 1) for one in samples])
        rates = sorted({0, squeezed.rates // 2, squeezed.rates - 1})
        received = receive(cut.name, squeezed, samples, rates)
        return SplitOutcome(information=information_plane(inputs, answers_of(self.model, samples), received))

    def _raw(
        self, slug: str, parts: tuple[str, str], head: Model, features: Sequence[Arrays], tail: Built
    ) -> SplitOutcome:
        """The same parts with nothing coded: on a fast link the codec's time is worth more than its bytes."""
        codec = codec_entry(f"raw-{slug}", "plain", None, head.output_specs, PLAIN_RATES)
        ladder = self.tiers.ladder(features, codec, None, tail)
        return SplitOutcome(
            codecs=(ladder.of(codec),),
            variants=(Variant(name=f"raw-{slug}", parts=parts, codecs=(codec.name,)),),
            rows=ladder.rows(f"raw-{slug}", codec.name),
        )


def check_split(recipe: Recipe, model: Model) -> None:
    """Before minutes of work. Raises UnknownNameError for a cut that `model` lacks, UsageError for training data that
    nothing learns from, DeviceError for a profile that cannot serve, DataError for a training folder without samples or
    a model without calibration data, SourceError for a model without a torch graph."""
    if recipe.train is not None:
        sample_files(recipe.train)
        refuse_idle_training(recipe)
    for reference in (recipe.edge, recipe.cloud):
        if reference is not None:
            server_profile(reference)
    if recipe.split not in ("auto", "none"):
        named_cuts(model, recipe.split)
    if recipe.split != "none" and len(model.calibration) < FEWEST_SAMPLES:
        raise DataError(
            f"{len(model.calibration)} calibration samples, allowed {FEWEST_SAMPLES} and more to split "
            "(some hundred are better)",
            hint="--calibration FOLDER: a bottleneck is fitted to what crosses the cut",
        )


def refuse_idle_training(recipe: Recipe) -> None:
    """Raises UsageError for training data of which nothing learns."""
    may_learn = recipe.bottleneck == "auto" or learns(BOTTLENECKS.load(recipe.bottleneck))
    others = recipe.prune_weights != "none" or recipe.compress_tokens.startswith("pool")
    if not others and (recipe.split == "none" or not may_learn):
        idle = "--split none" if recipe.split == "none" else f"--bottleneck {recipe.bottleneck}"
        raise UsageError(f"--train with {idle}, which learns nothing", hint="leave one of them out")


def named_cuts(model: Model, names: str) -> tuple[Cut, ...]:
    """`names`: separated by commas. Raises UnknownNameError."""
    known = {cut.name: cut for cut in candidate_cuts(model)}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UnknownNameError("cut", name, known)
    return tuple(known[name] for name in wanted)
