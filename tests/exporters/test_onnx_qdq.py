from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from edgekit.devices.device import load_device
from edgekit.exporters.base import Artifact
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.quantizers.quantize import simulate
from edgekit.quantizers.static import StaticInt8
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.fashion import FashionVit

PI = load_device("raspberry-pi-5")


@pytest.fixture(scope="module")
def pruned() -> Model:
    """Signed activations, and an integer convolution whose output is reshaped and transposed into float tokens."""
    torch.manual_seed(0)
    images = torch.randn(6, 1, 1, 28, 28)
    model = Model(
        "two-blocks",
        FashionVit(depth=2).eval(),
        {"image": images[0]},
        ("logits",),
        calibration=tuple({"image": image} for image in images[:4]),
        held_out=tuple({"image": image} for image in images[4:]),
    )
    captured = Capture()(PruneTokens("merge", keep=(36, 30))(model))
    return StaticInt8(OnnxExporter().scheme(PI))(captured)


@pytest.fixture(scope="module")
def artifact(pruned: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return OnnxExporter().export(pruned, tmp_path_factory.mktemp("pi"), PI)


def test_a_pruned_transformer_with_signed_integers_runs_and_gives_what_torch_gives(
    pruned: Model, artifact: Artifact
) -> None:
    reference = simulate(pruned)
    with artifact.open(pruned, SessionOptions(threads=1)) as session:
        for sample in pruned.held_out:
            got = session.run({name: value.numpy() for name, value in sample.items()})
            for name, wanted in reference.forward(sample).items():
                np.testing.assert_allclose(got[name], wanted.numpy(), atol=0.05 * float(wanted.abs().max()))


def test_every_weight_is_stored_once(pruned: Model, artifact: Artifact) -> None:
    graph = onnx.load(str(artifact.path)).graph
    read = {name for node in graph.node for name in node.input}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert set(stored) <= read
    integers = sum(value.size for value in stored.values() if value.dtype == np.int8 and value.ndim > 1)
    assert pruned.quantization is not None
    weights = pruned.quantization.weights
    assert integers == sum(pruned.graph.get_parameter(name).numel() for name in weights)
