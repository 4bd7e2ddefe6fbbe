"""Parts of a graph keep their names whatever is pruned, and narrower blocks answer as they should."""

from __future__ import annotations

import pytest

from edgekit.costs import segments
from edgekit.devices.device import load_device
from edgekit.devices.latency import predict
from edgekit.model import Model
from edgekit.parity import compare, run_model
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.preparation import prepare
from edgekit.progress import silent
from edgekit.search.anatomy import encoder_path, groups, latencies
from edgekit.search.narrowing import GONE, lean, narrow, present, whole_shape
from edgekit.zoo.fashion import fashion_cnn, fashion_vit

BLOCKS = 6
NAMES = [
    "stem",
    *(f"block {block} {part}" for block in range(BLOCKS) for part in ("attention", "feed-forward")),
    "head",
]


@pytest.fixture(scope="module")
def vit() -> Model:
    model = fashion_vit()
    return model.evolve_quietly(
        output_names=("logits",), calibration=model.calibration[:16], held_out=model.held_out[:8], labels=()
    )


def test_the_parts_of_a_vision_transformer_have_the_same_names_and_weights_when_pruned(vit: Model) -> None:
    path = encoder_path(vit)
    whole = groups(prepare(vit, silent)[0], path)
    pruned = groups(prepare(PruneTokens("class", keep=(20,) * BLOCKS)(vit), silent)[0], path)
    assert [group.name for group in whole] == NAMES == [group.name for group in pruned]
    assert [group.weights for group in whole] == [group.weights for group in pruned]


def test_blocks_keep_their_numbers_when_others_are_gone(vit: Model) -> None:
    shape = ((4, 128), GONE, (2, 64), GONE, (4, 128), (3, 128))
    captured = prepare(lean(narrow(vit, shape, vit.calibration)), silent)[0]
    found = groups(captured, encoder_path(vit), present(shape))
    assert present(shape) == (0, 2, 4, 5)
    assert [group.name for group in found] == [name for name in NAMES if not name.startswith(("block 1 ", "block 3 "))]


def test_a_network_without_an_encoder_is_taken_in_runs_of_layers() -> None:
    model = fashion_cnn()
    assert encoder_path(model) is None
    found = groups(prepare(model, silent)[0], None)
    assert 5 <= len(found) <= 10
    assert [group.name for group in found] == [f"part {index + 1}" for index in range(len(found))]


def test_the_milliseconds_of_the_parts_add_up_to_the_prediction(vit: Model) -> None:
    captured, device = prepare(vit, silent)[0], load_device("raspberry-pi-5")
    for precision in ("fp32", "int8", "int8-dynamic"):
        found = latencies(captured, encoder_path(vit), precision, device, "onnx")
        assert sum(found.values()) == pytest.approx(predict(segments(captured, precision), device, "onnx").latency_ms)


def test_the_whole_shape_changes_nothing_and_a_narrower_one_little(vit: Model) -> None:
    whole = whole_shape(vit)
    assert whole == ((4, 128),) * BLOCKS
    reference = run_model(vit, vit.held_out)
    same = lean(narrow(vit, whole, vit.calibration))
    assert compare("", reference, run_model(same, vit.held_out)).sqnr_db > 80
    narrower = narrow(vit, ((4, 128), (3, 96), *whole[2:]), vit.calibration)
    assert 15 < compare("", reference, run_model(narrower, vit.held_out)).sqnr_db < 60


def test_a_lean_copy_answers_alike_with_fewer_layers(vit: Model) -> None:
    shape = ((4, 128), (2, 64), *whole_shape(vit)[2:])
    plain = narrow(vit, shape, vit.calibration)
    answers = [run_model(model, vit.held_out) for model in (plain, lean(plain))]
    assert compare("", answers[0], answers[1]).sqnr_db > 80
