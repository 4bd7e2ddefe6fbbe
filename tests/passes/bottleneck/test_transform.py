"""Transform coding folded into head and tail: exact without a codec, close through one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError, PlanError
from edgekit.model import Model
from edgekit.passes.bottleneck.crossing import WIRE, Crossing, merge_convolutions
from edgekit.passes.bottleneck.ladder import FINEST_ERROR, kept_channels
from edgekit.passes.bottleneck.transform import TransformCoding
from edgekit.passes.capture import Capture
from edgekit.passes.partition.candidates import cut_at, cuts, find_cut
from edgekit.passes.partition.split import split
from edgekit.registry import BOTTLENECKS
from edgekit.runtimes.codecs.transform import TransformCodec

# Rotations and their inverses in float32, sums of some dozen terms of size one: a few hundred units in the last place.
TOLERANCE = 2e-4


def _composed(below: Model, above: Model, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    (output,) = above.forward(below.forward(sample)).values()
    return output


def test_registry_finds_it() -> None:
    assert BOTTLENECKS.load("transform") is TransformCoding


def test_head_and_tail_without_a_codec_are_the_model(tiny: Model, stages: tuple[Model, Model]) -> None:
    squeezed = TransformCoding(rates=4).insert(*stages)

    assert squeezed.head.output_names == (WIRE,) and list(squeezed.tail.example_inputs) == [WIRE]
    for sample in tiny.held_out[:8]:
        expected = tiny.forward(sample)["logits"]
        assert torch.allclose(_composed(squeezed.head, squeezed.tail, sample), expected, atol=TOLERANCE)


def test_a_batch_of_any_size_passes(tiny: Model, stages: tuple[Model, Model]) -> None:
    squeezed = TransformCoding(rates=4).insert(*stages)
    batch = {"image": torch.cat([sample["image"] for sample in tiny.held_out[:5]])}

    assert torch.allclose(_composed(squeezed.head, squeezed.tail, batch), tiny.forward(batch)["logits"], atol=TOLERANCE)


def test_the_rotation_is_merged_into_the_linear_convolution_below_the_cut(stages: tuple[Model, Model]) -> None:
    def convolutions(model: Model) -> int:
        return sum(node.target is torch.ops.aten.conv2d.default for node in model.graph.graph.nodes)

    squeezed = TransformCoding(rates=4).insert(*stages)

    assert convolutions(squeezed.head) == convolutions(stages[0])


def test_components_come_in_order_of_importance(stages: tuple[Model, Model]) -> None:
    squeezed = TransformCoding(rates=4).insert(*stages)
    components = torch.cat([sample[WIRE] for sample in squeezed.tail.calibration])
    power = (components - components.mean(0)).square().mean((0, 2, 3))

    assert torch.equal(power, power.sort(descending=True).values)


def test_coarser_rates_cost_fewer_bytes_and_more_error(tiny: Model, stages: tuple[Model, Model]) -> None:
    squeezed = TransformCoding(rates=12).insert(*stages)
    codec = TransformCodec(squeezed.head.output_specs, squeezed.rates, squeezed.tables)
    exact = np.concatenate([sample[WIRE].numpy() for sample in squeezed.tail.held_out])
    expected = torch.cat([tiny.forward(sample)["logits"] for sample in tiny.held_out])
    sizes, errors = [], []
    for rate in range(12):
        payload = codec.encode([exact], rate)
        (decoded,) = codec.decode(payload, [exact.shape], rate)
        (logits,) = squeezed.tail.forward({WIRE: torch.from_numpy(decoded)}).values()
        sizes.append(len(payload))
        errors.append(float((logits - expected).square().mean() / expected.var(0).mean()))

    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 12
    assert errors[0] < 0.02 and errors[-1] > 0.1 and errors[0] == min(errors)


def test_sensitivity_makes_the_outputs_better_at_the_same_bytes() -> None:
    """The tail reads two of eight channels: axes in its metric spend nothing on the other six."""

    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)
            with torch.no_grad():
                self.second.weight[:, 2:] = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.second(torch.tanh(self.first(x)))
            return value

    torch.manual_seed(0)
    data = tuple({"x": row[None]} for row in torch.randn(400, 8))
    model = Capture()(Model("partial", Partial(), data[0], ("y",), dynamic={"x": {0: "batch"}}, calibration=data))
    tail_of = split(model, [next(cut for cut in cuts(model) if cut.size_bytes == 32)])
    bits = {}
    for sensitive in (False, True):
        squeezed = TransformCoding(rates=1, sensitive=sensitive, regularization=1e-3).insert(*tail_of)
        components = np.concatenate([sample[WIRE].numpy() for sample in squeezed.tail.calibration])
        codec = TransformCodec(squeezed.head.output_specs, 1, squeezed.tables)
        bits[sensitive] = len(codec.encode([components], 0))

    # Both ladders begin at the step with the same error of the outputs.
    assert bits[True] < 0.6 * bits[False]


@pytest.mark.parametrize("shape", [(5, 6), (257, 6), (6,)], ids=["tokens", "tokens of 224 pixels", "vectors"])
def test_tokens_and_vectors_are_coded_too(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 2))
    data = tuple({"x": row[None]} for row in torch.randn(40, *shape))
    model = Capture()(Model("rows", module, data[0], ("y",), dynamic={"x": {0: "batch"}}, calibration=data))
    head, tail = split(model, [cuts(model)[0]])
    squeezed = TransformCoding(rates=3).insert(head, tail)

    assert Crossing.of(tail).per_position is (len(shape) == 2)
    assert torch.allclose(_composed(squeezed.head, squeezed.tail, data[3]), model.forward(data[3])["y"], atol=TOLERANCE)


def test_no_channel_is_dropped_where_rows_are_too_few_to_say_that_it_is_idle() -> None:
    generator = np.random.default_rng(0)
    few, many = np.zeros((8, 8), np.float32), np.zeros((9, 8), np.float32)
    few[:, :3], many[:, :3] = generator.normal(3, 1, (8, 3)), generator.normal(3, 1, (9, 3))

    assert kept_channels(few, [0.1, 1.0], 1, 0.5) == [8, 8]
    assert kept_channels(many, [0.1, 1.0], 1, 0.5) == [3, 3]


def test_few_calibration_rows_do_not_blind_the_code_to_other_directions() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    data = tuple({"x": row[None]} for row in torch.randn(40, 24))
    model = Capture()(Model("short", module, data[0], ("y",), dynamic={"x": {0: "batch"}}, calibration=data[:12]))
    head, tail = split(model, [cuts(model)[0]])
    squeezed = TransformCoding(rates=2).insert(head, tail)
    codec = TransformCodec(squeezed.head.output_specs, 2, squeezed.tables)
    exact, coded = [], []
    for sample in data[12:]:
        (feature,) = (value.numpy() for value in squeezed.head.forward(sample).values())
        (decoded,) = codec.decode(codec.encode([feature], 0), [feature.shape], 0)
        coded.append(squeezed.tail.forward({WIRE: torch.from_numpy(decoded)})["y"])
        exact.append(model.forward(sample)["y"])
    error = (torch.cat(coded) - torch.cat(exact)).square().sum() / torch.cat(exact).square().sum()
    assert float(error) < 10 * FINEST_ERROR


def test_several_tensors_cross_joined_along_their_channels(tiny: Model) -> None:
    torch.manual_seed(0)

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)
            self.top = nn.Linear(8, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            stem = torch.relu(self.stem(image))
            left, right = self.left(stem), self.right(stem)
            value: torch.Tensor = self.top(torch.cat([left.mean((2, 3)), torch.relu(right).mean((2, 3))], 1))
            return value

    model = Capture()(replace(tiny, module=Fork(), output_names=("y",), postprocess=None, held_out=()))
    names = [node.name for node in model.graph.graph.nodes if "conv2d" in node.name or node.name.startswith("relu")]
    both = cut_at(model, ["image", *names[:2], *(name for name in names[2:] if name.startswith("conv2d"))])
    head, tail = split(model, [both])
    assert len(tail.example_inputs) == 2
    squeezed = TransformCoding(rates=3).insert(head, tail)
    sample = tiny.held_out[0]

    assert squeezed.head.output_specs[0].shape[1] == 8
    assert torch.allclose(_composed(squeezed.head, squeezed.tail, sample), model.forward(sample)["y"], atol=TOLERANCE)


def test_crossing_tensors_of_other_sizes_are_refused_with_the_fix(stages: tuple[Model, Model]) -> None:
    tail = stages[1]
    example = {"a": torch.zeros(1, 3, 4, 4), "b": torch.zeros(1, 3, 2, 2)}
    with pytest.raises(PlanError, match=r"a \[1, 3, 4, 4\], b \[1, 3, 2, 2\]") as caught:
        Crossing.of(replace(tail, example_inputs=example, calibration=(), held_out=()))

    assert "cut where one tensor crosses" in caught.value.hint


def test_no_calibration_data_is_told(stages: tuple[Model, Model]) -> None:
    head, tail = stages
    with pytest.raises(DataError, match="0 calibration samples"):
        TransformCoding().insert(head, replace(tail, calibration=()))


def test_merged_convolutions_compute_the_same() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Conv2d(5, 4, 1, bias=False), nn.ReLU())
    data = torch.randn(2, 2, 9, 9)
    model = Capture()(Model("pair", module, {"x": data}, ("y",)))
    graph = model.copy_graph()

    assert merge_convolutions(graph) == 1
    # Sums of 18 x 5 products of size one in float32.
    assert torch.allclose(graph(data)[0], model.graph(data)[0], atol=1e-5)
    assert sum(node.target is torch.ops.aten.conv2d.default for node in graph.graph.nodes) == 1


def test_the_inputs_are_left_as_they_were(stages: tuple[Model, Model]) -> None:
    before = [value.clone() for stage in stages for value in stage.graph.state_dict().values()]
    TransformCoding(rates=3).insert(*stages)

    after = [value for stage in stages for value in stage.graph.state_dict().values()]
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_cut_names_stay_known(tiny: Model) -> None:
    assert find_cut(tiny, "narrow").size_bytes == 8 * 6 * 6 * 4
