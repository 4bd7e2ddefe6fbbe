import math
from dataclasses import replace

import pytest

from edgekit.devices.device import load_device
from edgekit.devices.latency import bandwidth_gbps, peak_gflops, predict, roofs
from edgekit.devices.segment import LIGHT_DISPATCH, Segment
from edgekit.errors import DeviceError

PI_4, PI_5 = load_device("raspberry-pi-4"), load_device("raspberry-pi-5")
ORIN, SUPER = load_device("jetson-orin-nano"), load_device("jetson-orin-nano-super")
CONV = Segment("conv", "conv", "fp32", 1e9, 1e6)
COPY = Segment("copy", "movement", "fp32", 0.0, 1e8)


def with_unit(device, **changes):
    return replace(device, units=(replace(device.units[0], **changes), *device.units[1:]))


def latency(segment, device=PI_5, format="onnx", threads=None):
    return predict([segment], device, format, threads).latency_ms


def test_latency_is_the_roofline_over_efficiency_plus_dispatch():
    device = replace(PI_5, efficiency={"cpu/conv/fp32": 0.5, "cpu/memory/fp32": 1.0, "cpu/matmul/fp32": 0.5})
    compute_ms = 1e9 / (153.6e9 * 0.5) * 1e3
    memory_ms = 1e8 / 5.6e9 * 1e3
    dispatch_ms = 0.01
    assert latency(CONV, device) == pytest.approx(compute_ms + dispatch_ms)
    light_ms = LIGHT_DISPATCH * dispatch_ms
    assert latency(COPY, device) == pytest.approx(memory_ms + light_ms)
    both = predict([CONV, COPY], device, "onnx")
    assert both.latency_ms == pytest.approx(compute_ms + memory_ms + dispatch_ms + light_ms)
    assert [time.bound for time in both.by_segment] == ["compute", "memory"]
    assert both.bound == "memory"


@pytest.mark.parametrize("factor", [1.5, 4, 100])
def test_more_work_or_more_bytes_never_takes_less_time(factor):
    assert latency(replace(CONV, flops=CONV.flops * factor)) > latency(CONV)
    assert latency(replace(COPY, bytes_moved=COPY.bytes_moved * factor)) > latency(COPY)
    assert latency(replace(CONV, launches=2)) > latency(CONV)


def test_more_bandwidth_or_more_peak_never_takes_more_time():
    wide = with_unit(PI_5, bandwidth_gbps=50.0, single_core_bandwidth_gbps=50.0)
    assert latency(COPY, wide) < latency(COPY)
    fast = with_unit(PI_5, peak_gflops={"fp32": 1000.0})
    assert latency(CONV, fast) < latency(CONV)


def test_more_threads_never_take_more_time_and_gain_less_than_their_number():
    times = [latency(CONV, threads=threads) for threads in (1, 2, 3, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[3] < 4
    assert latency(CONV, threads=8) == latency(CONV, threads=4) == latency(CONV)
    with pytest.raises(DeviceError, match="threads 0"):
        latency(CONV, threads=0)


def test_one_core_gets_its_own_bandwidth_and_all_cores_the_devices():
    unit = PI_5.unit("cpu")
    assert bandwidth_gbps(unit, 1) == unit.single_core_bandwidth_gbps
    assert bandwidth_gbps(unit) == unit.bandwidth_gbps


def test_int8_gains_less_without_a_dot_product():
    """Peak rates: four times float on the Pi 5 (SDOT), twice on the Pi 4."""
    cpu_4, cpu_5 = PI_4.unit("cpu"), PI_5.unit("cpu")
    assert peak_gflops(cpu_5, "int8") / peak_gflops(cpu_5, "fp32") == pytest.approx(4)
    assert peak_gflops(cpu_4, "int8") / peak_gflops(cpu_4, "fp32") == pytest.approx(2)


def test_a_precision_that_the_unit_lacks_runs_at_its_float_rate():
    assert peak_gflops(PI_4.unit("cpu"), "fp16") == peak_gflops(PI_4.unit("cpu"), "fp32")
    nano = load_device("jetson-nano").unit("gpu")
    assert peak_gflops(nano, "int8") == nano.peak_gflops["fp32"]


def test_ampere_runs_float_layers_as_tf32():
    assert peak_gflops(ORIN.unit("gpu"), "fp32") == ORIN.unit("gpu").peak_gflops["tf32"]


def test_the_bar_is_narrower_where_the_profile_was_measured_on_the_device():
    guess = predict([CONV], PI_5, "onnx")
    measured = predict([CONV], replace(PI_5, efficiency={"cpu/conv/fp32": 0.6}), "onnx")
    assert not guess.calibrated and measured.calibrated
    assert guess.low_ms < guess.latency_ms < guess.high_ms
    assert measured.high_ms / measured.low_ms < guess.high_ms / guess.low_ms
    assert guess.high_ms / guess.latency_ms == pytest.approx(guess.latency_ms / guess.low_ms)


def test_a_format_that_the_device_cannot_run_is_refused():
    with pytest.raises(DeviceError, match="tensorrt"):
        predict([CONV], PI_5, "tensorrt")


def test_nothing_to_run_takes_no_time():
    assert predict([], PI_5, "onnx").latency_ms == 0.0


def test_the_ridge_is_where_compute_and_memory_meet():
    roof = {roof.precision: roof for roof in roofs(PI_5, "onnx")}["fp32"]
    assert roof.ridge == pytest.approx(153.6 / 5.6)
    ideal = replace(PI_5, efficiency={"cpu/conv/fp32": 1.0, "cpu/memory/fp32": 1.0})
    for intensity, bound in ((roof.ridge * 1.1, "compute"), (roof.ridge / 1.1, "memory")):
        segment = Segment("s", "conv", "fp32", 1e9, 1e9 / intensity)
        time = predict([segment], ideal, "onnx").by_segment[0]
        assert time.bound == bound
        assert time.intensity == pytest.approx(intensity)
        assert time.gflops <= 153.6


# Layer tables of the papers, in multiply-adds and bytes: MobileNetV2 (Sandler et al. 2018), ResNet-50 (He et al. 2016).
def mobilenet_v2(precision):
    """17 bottlenecks of (expand, depthwise, project) as in table 2 of the paper, batch 1, 224 pixels."""
    size = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    segments = [conv("stem", precision, size, 3, 32, 224, 2, 3)]
    pixels, channels = 112, 32
    for expansion, out, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(repeats):
            step, wide = (stride if index == 0 else 1), channels * expansion
            if expansion > 1:
                segments.append(conv("expand", precision, size, channels, wide, pixels, 1, 1))
            flops = 2.0 * wide * (pixels // step) ** 2 * 9
            moved = size * (wide * pixels**2 + wide * (pixels // step) ** 2 + 9 * wide)
            segments.append(Segment("depthwise", "depthwise", precision, flops, moved))
            pixels //= step
            segments.append(conv("project", precision, size, wide, out, pixels, 1, 1))
            channels = out
    return [
        *segments,
        conv("head", precision, size, 320, 1280, 7, 1, 1),
        conv("fc", precision, size, 1280, 1000, 1, 1, 1),
    ]


def resnet_50(precision):
    size = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    segments = [conv("stem", precision, size, 3, 64, 224, 2, 7)]
    pixels, channels = 56, 64
    for width, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(repeats):
            step = stride if index == 0 else 1
            segments.append(conv("reduce", precision, size, channels, width, pixels, 1, 1))
            segments.append(conv("spatial", precision, size, width, width, pixels, step, 3))
            if index == 0:
                segments.append(conv("shortcut", precision, size, channels, 4 * width, pixels, step, 1))
            pixels //= step
            segments.append(conv("grow", precision, size, width, 4 * width, pixels, 1, 1))
            channels = 4 * width
    return [*segments, conv("fc", precision, size, 2048, 1000, 1, 1, 1)]


def conv(name, precision, size, channels, out, pixels, stride, kernel):
    after = math.ceil(pixels / stride)
    weights = channels * out * kernel**2
    moved = size * (channels * pixels**2 + out * after**2 + weights)
    return Segment(name, "conv", precision, 2.0 * weights * after**2, moved)


def test_the_layer_tables_have_the_published_work():
    """MobileNetV2 300 M and ResNet-50 4.1 G multiply-adds."""
    assert sum(s.flops for s in mobilenet_v2("fp32")) / 2e6 == pytest.approx(300, rel=0.02)
    assert sum(s.flops for s in resnet_50("fp32")) / 2e9 == pytest.approx(4.1, rel=0.02)


@pytest.mark.parametrize(
    ("network", "precision", "device", "format", "published_ms"),
    [
        (mobilenet_v2, "fp32", PI_4, "litert", 44.0),
        (resnet_50, "fp32", SUPER, "tensorrt", 3.60),
        (resnet_50, "fp16", SUPER, "tensorrt", 1.81),
        (resnet_50, "int8", SUPER, "tensorrt", 1.19),
    ],
)
def test_published_latencies_lie_within_the_bar(network, precision, device, format, published_ms):
    prediction = predict(network(precision), device, format)
    assert prediction.low_ms <= published_ms <= prediction.high_ms, prediction.latency_ms


def test_mobilenet_gains_little_from_int8_on_an_orin():
    """Published: 1.09 times over fp16, where ResNet-50 gains 1.5: it waits for dispatch and memory."""
    gains = [
        predict(network("fp16"), SUPER, "tensorrt").latency_ms / predict(network("int8"), SUPER, "tensorrt").latency_ms
        for network in (mobilenet_v2, resnet_50)
    ]
    assert 1.0 <= gains[0] < gains[1]
