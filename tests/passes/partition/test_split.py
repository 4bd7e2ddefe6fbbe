from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.devices.device import load_device
from edgekit.errors import PlanError, SourceError
from edgekit.model import Model
from edgekit.passes.capture import export_program
from edgekit.passes.partition.candidates import Layout, cut_at, cuts, find_cut
from edgekit.passes.partition.compose import chain, compose
from edgekit.passes.partition.split import answers, split
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize
from edgekit.registry import EXPORTERS
from edgekit.report.metrics import sqnr_db
from edgekit.runtimes.session import SessionOptions

from .conftest import SMALL  # type: ignore[import-not-found]


def assert_composes(model: Model, stages: Sequence[Model]) -> None:
    """Bit for bit, at the example's sizes and at larger ones."""
    run = compose(stages)
    samples = [model.example_inputs, *model.held_out[:1]]
    if all(0 in dims for dims in model.dynamic.values()) and len(model.dynamic) == len(model.example_inputs):
        samples.append({name: torch.cat([value] * 3) for name, value in model.example_inputs.items()})
    for sample in samples:
        want, got = model.forward(sample), run(sample)
        assert list(got) == list(want)
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_composes_bit_for_bit_and_can_be_captured_again(small: Callable[[str], Model], name: str) -> None:
    model = small(name)
    for index, cut in enumerate(cuts(model)):
        stages = split(model, [cut])
        assert_composes(model, stages)
        for stage in stages if index % 3 == 0 else ():
            export_program(stage)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_compose_at_random_closed_sets(tangle: Callable[[int], Model], seed: int) -> None:
    model = tangle(seed)
    dice = random.Random(seed)
    flow = Layout.of(model).flow
    tried = list(cuts(model))
    for _ in range(6):
        head = flow.closure([dice.choice(flow.nodes) for _ in range(dice.randint(1, 3))])
        try:
            tried.append(cut_at(model, [node.name for node in head]))
        except PlanError:
            continue
    assert tried
    for cut in tried:
        assert_composes(model, split(model, [cut]))


@pytest.mark.parametrize("name", SMALL)
def test_three_and_more_stages_compose(small: Callable[[str], Model], name: str) -> None:
    model = small(name)
    found = cuts(model)
    stages = split(model, found)
    assert len(stages) == len(found) + 1
    assert_composes(model, stages)
    for below, above in itertools.pairwise(stages):
        assert tuple(above.example_inputs) == below.output_names


def test_names_are_identifiers_and_no_stage_gives_what_it_takes_under_one_name(small: Callable[[str], Model]) -> None:
    for name in SMALL:
        for stage in split(small(name), cuts(small(name))):
            assert all(value.isidentifier() for value in (*stage.example_inputs, *stage.output_names))
            assert not set(stage.example_inputs) & set(stage.output_names)


def test_each_stage_has_its_own_weights_alone(fashion: Model) -> None:
    for cut in cuts(fashion)[::4]:
        head, tail = split(fashion, [cut])
        assert head.size_bytes == 4 * cut.head_parameters
        assert head.size_bytes + tail.size_bytes == fashion.size_bytes


def test_shared_weights_go_with_both_sides(small: Callable[[str], Model]) -> None:
    model = small("shared weights")
    head, tail = split(model, [cuts(model)[0]])
    assert head.size_bytes + tail.size_bytes == model.size_bytes + 72 * 4


def test_training_a_stage_leaves_the_model_as_it_was(fashion: Model) -> None:
    before = copy.deepcopy(fashion.graph.state_dict())
    printed = str(fashion.graph.graph)
    for stage in split(fashion, [find_cut(fashion, "features.5")]):
        for weight in stage.module.parameters():
            weight.data.add_(1.0)
    assert all(torch.equal(value, fashion.graph.state_dict()[name]) for name, value in before.items())
    assert str(fashion.graph.graph) == printed


def test_samples_of_the_tail_are_the_heads_answers(fashion: Model) -> None:
    head, tail = split(fashion, [find_cut(fashion, "features.5")])
    assert head.calibration is fashion.calibration and head.labels == tail.labels == fashion.labels
    assert len(tail.calibration) == len(fashion.calibration)
    for sample, feature in zip(head.held_out, tail.held_out, strict=True):
        want = head.forward(sample)["features_5"]
        # One sample alone and in a batch differ by the order of sums of at most 128 x 9 products.
        assert torch.allclose(feature["features_5"], want, rtol=0, atol=1152 * 2**-23 * float(want.abs().max()))
        assert feature["features_5"].untyped_storage().nbytes() == want.numel() * 4


def test_samples_of_different_sizes_are_answered_one_by_one(small: Callable[[str], Model]) -> None:
    model = small("sized")
    model = replace(model, calibration=tuple({"words": torch.randn(1, length, 4)} for length in (3, 9)), held_out=())
    head, tail = split(model, [cuts(model)[0]])
    assert [next(iter(sample.values())).shape[1] for sample in tail.calibration] == [3, 9]
    assert answers(head, ()) == ()


def test_the_border_keeps_its_place(fashion: Model) -> None:
    head, middle, tail = split(fashion, [find_cut(fashion, "features.3"), find_cut(fashion, "features.5")])
    assert head.preprocess is fashion.preprocess and middle.preprocess is tail.preprocess is None
    assert tail.postprocess is fashion.postprocess and head.postprocess is middle.postprocess is None
    assert [stage.name.removeprefix("fashion-cnn-") for stage in (head, middle, tail)] == ["head", "middle", "tail"]
    assert head.history[-1].detail == "head at features.3" and len(head.history) == len(fashion.history) + 1


def test_dynamic_sizes_are_carried(small: Callable[[str], Model]) -> None:
    model = small("sized")
    _, tail = split(model, [cuts(model)[0]])
    assert list(tail.dynamic.values()) == [{0: "batch", 1: "length"}]


def test_cuts_out_of_order_are_refused(fashion: Model) -> None:
    with pytest.raises(PlanError, match="does not lie above"):
        split(fashion, [find_cut(fashion, "features.5"), find_cut(fashion, "features.3")])


def test_a_cut_that_leaves_a_value_out_is_refused(fashion: Model) -> None:
    cut = find_cut(fashion, "features.6.layers")
    with pytest.raises(PlanError, match="leaves out conv2d_9"):
        split(fashion, [replace(cut, crossing=cut.crossing[1:])])


def test_a_cut_of_another_model_is_refused(fashion: Model) -> None:
    with pytest.raises(SourceError, match="no value 'nowhere'"):
        split(fashion, [replace(cuts(fashion)[0], crossing=("nowhere",))])


@pytest.mark.parametrize(("name", "format"), [("long skips", "onnx"), ("two in, two out", "litert")])
def test_files_of_three_stages_compose(small: Callable[[str], Model], name: str, format: str, tmp_path: Path) -> None:
    model = small(name)
    device = load_device("x86-server")
    exporter = EXPORTERS.load(format)()
    found = cuts(model)
    stages = split(model, [found[1], found[-2]])
    sessions = [exporter.export(s, tmp_path, device).open(s, SessionOptions(threads=1)) for s in stages]
    run = chain([session.run for session in sessions], [tuple(stage.example_inputs) for stage in stages])
    got = run({key: value.numpy() for key, value in model.example_inputs.items()})
    for key, want in model.forward(model.example_inputs).items():
        assert sqnr_db(want.numpy(), got[key]) > 100


def test_stages_quantize_like_any_model(fashion: Model, tmp_path: Path) -> None:
    device, exporter = load_device("x86-server"), EXPORTERS.load("onnx")()
    stages = split(fashion, [find_cut(fashion, "features.5")])
    sessions = []
    for stage in stages:
        quantized = quantize(stage, "int8", exporter.scheme(device), QuantizerOptions(), (), silent)
        artifact = exporter.export(quantized, tmp_path, device)
        sessions.append(artifact.open(quantized, SessionOptions(threads=1)))
    run = chain([session.run for session in sessions], [tuple(stage.example_inputs) for stage in stages])
    got = np.concatenate([run({"image": sample["image"].numpy()})["logits"] for sample in fashion.held_out])
    want = np.concatenate([fashion.forward(sample)["logits"].numpy() for sample in fashion.held_out])
    # Eight bits a tensor leave 6.02 x 8 dB; 18 layers in a row take about 10 log10(18) of them.
    assert sqnr_db(want, got) > 6.02 * 8 - 10 * np.log10(18) - 10
    with pytest.raises(SourceError, match="quantized already"):
        split(quantized, [cuts(quantized)[0]])
