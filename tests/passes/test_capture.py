from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import CaptureError, DataError, NumericsError, SourceError
from edgekit.model import Model
from edgekit.passes.capture import Capture, export_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> dict[str, Tensor | None]:
        pooled = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return {"logits": self.head(self.drop(pooled)), "hidden": None, "pooled": pooled}


def model(module: nn.Module, **inputs: Tensor) -> Model:
    return Model("net", module, inputs)


def test_capture_gives_the_eager_outputs_by_name_and_skips_none() -> None:
    net = Net().eval()
    image = torch.randn(2, 3, 16, 16)
    captured = Capture()(model(net, image=image))
    assert captured.output_names == ("logits", "pooled")
    outputs = captured.forward({"image": image})
    assert torch.equal(outputs["logits"], net(image)["logits"])


def test_capture_leaves_the_module_in_its_mode_and_with_its_weights() -> None:
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Capture()(model(net, image=torch.randn(2, 3, 16, 16)))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_dynamic_batch_survives_an_example_of_one() -> None:
    captured = Capture()(Model("net", Net(), {"image": torch.randn(1, 3, 16, 16)}, dynamic={"image": {0: "batch"}}))
    assert captured.forward({"image": torch.randn(5, 3, 16, 16)})["logits"].shape == (5, 4)
    assert captured.output_specs[0].shape == ("batch", 4)
    program = export_program(captured)
    assert len(program.range_constraints) == 1


def test_static_export_fixes_the_batch() -> None:
    captured = Capture()(Model("net", Net(), {"image": torch.randn(1, 3, 16, 16)}, dynamic={"image": {0: "batch"}}))
    assert not export_program(captured, static=True).range_constraints


def test_inputs_are_passed_by_name_where_forward_knows_them() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, skipped: Tensor | None = None, b: Tensor | None = None) -> Tensor:
            assert skipped is None
            return a - b

    captured = Capture()(model(Pair(), a=torch.ones(2), b=torch.full((2,), 3.0)))
    assert torch.equal(captured.forward({"a": torch.ones(2), "b": torch.zeros(2)})["output"], torch.ones(2))


def test_a_branch_on_values_names_its_line_and_the_remedy() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(CaptureError) as caught:
        Capture()(model(Branch(), x=torch.randn(3)))
    assert "if x.sum() > 0" in caught.value.message
    assert "test_capture.py" in caught.value.message
    assert "torch.where" in caught.value.hint


def test_a_data_dependent_shape_is_refused_with_the_remedy() -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            picked = x[x > 0]
            return picked.reshape(-1, 2) if picked.shape[0] % 2 == 0 else picked

    with pytest.raises(CaptureError) as caught:
        Capture()(model(Mask(), x=torch.randn(3)))
    assert "fixed-size" in caught.value.hint


def test_wrong_example_shape_says_so() -> None:
    with pytest.raises(CaptureError) as caught:
        Capture()(model(nn.Linear(4, 4), input=torch.randn(3)))
    assert "shapes do not fit" in caught.value.hint


def test_a_nan_weight_is_named() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="weight"):
        Capture()(model(net, input=torch.randn(1, 2)))


def test_an_infinite_output_is_named() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0.0

    with pytest.raises(NumericsError, match="output"):
        Capture()(model(Overflow(), x=torch.ones(2)))


def test_not_a_module_and_no_inputs_are_refused() -> None:
    with pytest.raises(SourceError, match=r"allowed a torch\.nn\.Module"):
        Model("net", "resnet", {"x": torch.ones(1)})  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="no example inputs"):
        Model("net", nn.Linear(2, 2), {})


def test_calibration_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[1, 3\]"):
        Model("net", nn.Linear(2, 2), {"input": torch.ones(1, 2)}, calibration=({"input": torch.ones(1, 3)},))
