import pytest
import torch
from torch import nn

from edgekit.costs import peak_activation_bytes, segments
from edgekit.costs.operators import operator_of
from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import ActivationGrid, Fallback, Quantization, Scheme


def captured(module, *inputs, **fields):
    sample = {f"x{index}": value for index, value in enumerate(inputs)}
    return Capture()(Model("m", module.eval(), sample, **fields))


def kinds(model, precision="fp32"):
    return [segment.kind for segment in segments(model, precision)]


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "groups"),
    [(3, 8, 3, 1, 1), (8, 4, 5, 2, 1), (8, 8, 1, 1, 2), (8, 8, 3, 1, 8)],
)
def test_a_convolutions_flops_and_bytes_are_the_closed_form(channels, out, kernel, stride, groups):
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
    (segment,) = segments(captured(conv, torch.randn(1, channels, 13, 13)), "fp32")
    after = (13 - 1) // stride + 1
    assert segment.kind == ("depthwise" if groups == channels else "conv")
    assert segment.flops == 2 * out * after**2 * kernel**2 * channels // groups
    parameters = sum(p.numel() for p in conv.parameters())
    assert segment.bytes_moved == 4 * (channels * 13**2 + out * after**2 + parameters)


def test_a_transposed_convolution_feeds_each_input_to_every_tap():
    (segment,) = segments(captured(nn.ConvTranspose2d(6, 4, 3, 2), torch.randn(1, 6, 5, 5)), "fp32")
    assert segment.flops == 2 * 6 * 25 * 4 * 9


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 7, 5), (9, 16, 3)])
def test_a_linear_layers_flops_are_the_closed_form(rows, inner, columns):
    (segment,) = segments(captured(nn.Linear(inner, columns), torch.randn(rows, inner)), "fp32")
    assert (segment.kind, segment.flops) == ("matmul", 2 * rows * inner * columns)
    assert segment.bytes_moved == 4 * (rows * inner + rows * columns + inner * columns + columns)


class Attention(nn.Module):
    def forward(self, query, key, value):
        return nn.functional.scaled_dot_product_attention(query, key, value)


def test_attention_is_written_out_as_two_products_and_a_softmax():
    shapes = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 6)
    found = segments(captured(Attention(), *shapes), "fp32")
    scores, name = 2 * 5 * 7, "scaled_dot_product_attention"
    assert [(one.name, one.kind, one.flops, one.bytes_moved) for one in found] == [
        (f"{name}.scores", "matmul", 2 * scores * 8, 4 * (80 + 112 + scores)),
        (f"{name}.softmax", "norm", 10 * scores, 4 * 2 * scores),
        (name, "matmul", 2 * scores * 6, 4 * (scores + 84 + 60)),
    ]
    assert {operator_of(one.name) for one in found} == {name}


class SelfAttention(nn.Module):
    def forward(self, x, mask):
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def test_a_mask_is_read_once_and_attention_to_oneself_keeps_its_shapes():
    scores, _, mixed = segments(captured(SelfAttention(), torch.randn(1, 2, 5, 8), torch.zeros(5, 5)), "fp16")
    assert scores.bytes_moved == 2 * (2 * 80 + 25 + 50)
    assert mixed.flops == 2 * 50 * 8


def test_attention_that_the_user_wrote_out_costs_the_same():
    class Written(nn.Module):
        def forward(self, query, key, value):
            return (query @ key.transpose(-1, -2)).softmax(-1) @ value

    shapes = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 6)
    assert [operator_of(one.name) for one in segments(captured(Written(), *shapes), "fp32")][-2] == "softmax"
    one, other = (
        sum(segment.flops for segment in segments(captured(module, *shapes), "fp32"))
        for module in (Attention(), Written())
    )
    assert one == other


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.bn(self.conv1(x)))
        return torch.relu(self.conv2(y) + y)


def test_norms_clamps_and_residuals_ride_on_the_convolution():
    result = segments(captured(Residual(), torch.randn(1, 8, 6, 6)), "fp32")
    assert [segment.kind for segment in result] == ["conv", "conv"]
    image, weights = 8 * 36, 8 * 8 * 9 + 8
    assert result[1].bytes_moved == 4 * (3 * image - image + weights), "the residual is the convolution's own input"


class Views(nn.Module):
    def forward(self, x):
        return x.view(4, 6).reshape(2, 12).unsqueeze(0).flatten() * 1.0


class Moves(nn.Module):
    def forward(self, x):
        return torch.cat([x.transpose(1, 2), x.transpose(1, 2)], 1)


def test_views_are_free_and_transposes_are_not():
    assert kinds(captured(Views(), torch.randn(4, 6))) == ["elementwise"]
    assert kinds(captured(Moves(), torch.randn(1, 3, 4))) == ["movement", "movement", "movement"]


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(nn.functional.pad(x, (1, 1, 1, 1)))


def test_padding_before_a_convolution_is_the_convolutions():
    assert kinds(captured(Padded(), torch.randn(1, 3, 6, 6))) == ["conv"]


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x + self.table.exp().t()


def test_what_weights_alone_give_is_folded():
    (segment,) = segments(captured(Constants(), torch.randn(4, 4)), "fp32")
    assert segment.kind == "elementwise"


class Wide(nn.Module):
    """A chain in which at most two tensors of 100 floats live at once, and a skip that makes it three."""

    def __init__(self, skip):
        super().__init__()
        self.skip = skip

    def forward(self, x):
        y = torch.sigmoid(x)
        z = torch.tanh(torch.exp(y))
        return z * y if self.skip else z


def test_peak_memory_is_the_most_alive_at_once():
    x = torch.randn(100)
    assert peak_activation_bytes(captured(Wide(False), x)) == 800
    assert peak_activation_bytes(captured(Wide(True), x)) == 1200


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    return captured(Net(), torch.randn(1, 3, 12, 12))


def precisions(model, precision):
    return {s.name: s.precision for s in segments(model, precision)}


def test_without_a_record_every_layer_that_can_is_taken_as_quantized(net):
    assert set(precisions(net, "int8").values()) == {"int8"}
    dynamic = precisions(net, "int8-dynamic")
    assert [dynamic[name] for name in ("conv2d", "conv2d_1", "linear")] == ["fp32", "fp32", "int8"]
    assert "linear.quantize" in dynamic
    assert set(precisions(net, "fp16").values()) == {"fp16"}
    assert set(precisions(net, "int8-weight-only").values()) == {"fp32"}


def test_fewer_bits_move_fewer_bytes_for_the_same_work(net):
    total = {p: sum(s.bytes_moved for s in segments(net, p)) for p in ("fp32", "fp16", "int8")}
    assert total["fp16"] == total["fp32"] / 2
    assert total["int8"] < total["fp16"]
    work = {p: sum(s.flops for s in segments(net, p)) for p in ("fp32", "fp16", "int8")}
    assert len(set(work.values())) == 1
    four, eight, full = (segments(net, p)[-1].bytes_moved for p in ("int4-weight-only", "int8-weight-only", "fp32"))
    weights = 8 * 4 + 4
    assert full - eight == weights * 3 and eight - four == weights / 2


def test_the_record_says_which_layers_run_in_integers(net):
    grid = ActivationGrid(0.1, 0, "int8", -128, 127)
    record = Quantization("int8", Scheme("test"), {}, {"relu": grid}, ("conv2d",), (Fallback("linear", "fp32", "why"),))
    model = net.evolve("Quantize", "", 0.0, quantization=record)
    by_name = {s.name: s for s in segments(model, "int8")}
    assert {name: s.precision for name, s in by_name.items()} == {
        "conv2d": "int8", "conv2d_1": "fp32", "mean": "fp32", "linear": "fp32",
    }  # fmt: skip
    float_bytes = {s.name: s.bytes_moved for s in segments(model, "fp32")}
    relu, weights = 8 * 100, 8 * 27 + 8
    assert float_bytes["conv2d"] - by_name["conv2d"].bytes_moved == 3 * (relu + weights)
    assert peak_activation_bytes(model) < peak_activation_bytes(net)


def test_a_model_that_is_not_captured_is_refused():
    with pytest.raises(SourceError, match="not captured"):
        segments(Model("m", Net(), {"x": torch.randn(1, 3, 12, 12)}), "fp32")


def test_an_onnx_file_costs_what_its_torch_graph_costs(net, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    shapes = {"wa": (8, 3, 3, 3), "ba": (8,), "wb": (8, 8, 3, 3), "bb": (8,), "wc": (8, 4), "bc": (4,)}
    constants = [
        helper.make_tensor(n, TensorProto.FLOAT, s, bytes(4 * torch.Size(s).numel()), raw=True)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x0", "wa", "ba"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "wb", "bb"], ["b"], name="b"),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("GlobalAveragePool", ["rb"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wc", "bc"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", 3, 12, 12])
    graph = helper.make_graph(
        nodes, "g", [image], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    model = Model("m", nn.Identity(), dict(net.example_inputs), onnx_path=path)
    ours, theirs = segments(model, "fp32"), segments(net, "fp32")
    assert [(s.kind, s.flops, s.bytes_moved) for s in ours] == [(s.kind, s.flops, s.bytes_moved) for s in theirs]
    assert peak_activation_bytes(model) == peak_activation_bytes(net)
