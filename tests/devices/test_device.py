import pytest

from edgekit.devices.device import ALIASES, covers, figure_names, load_device, parse_profile, profile_names
from edgekit.devices.device_toml import to_toml
from edgekit.errors import DeviceError, UnknownNameError
from edgekit.registry import QUANTIZERS, SESSIONS

WANTED = {
    "raspberry-pi-4",
    "raspberry-pi-5",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-orin-nano-super",
    "jetson-agx-orin",
    "pixel-8",
    "x86-server",
}
PI_5 = to_toml(load_device("raspberry-pi-5"))


def test_the_promised_profiles_and_aliases_are_there():
    assert set(profile_names()) >= WANTED
    for alias in ALIASES:
        assert load_device(alias).name in WANTED


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_has_a_source_or_says_that_it_is_estimated(name):
    device = load_device(name)
    bare = [figure for figure in figure_names(device) if not covers([*device.sources, *device.estimated], figure)]
    assert bare == []
    both = [figure for figure in figure_names(device) if figure in device.sources and covers(device.estimated, figure)]
    assert both == []


@pytest.mark.parametrize("name", profile_names())
def test_every_source_and_estimate_names_a_figure(name):
    device = load_device(name)
    figures = [*figure_names(device), "efficiency"]
    idle = [path for path in (*device.sources, *device.estimated) if not any(covers([path], f) for f in figures)]
    assert idle == []


@pytest.mark.parametrize("name", profile_names())
def test_formats_and_precisions_are_registered(name):
    device = load_device(name)
    assert device.name == name
    for format in device.formats:
        assert format in SESSIONS
        assert set(device.precisions(format)) <= {*QUANTIZERS, "fp32"}


@pytest.mark.parametrize("name", profile_names())
def test_sustained_bandwidth_stays_below_nominal_and_dense_below_sparse(name):
    device = load_device(name)
    for unit in device.units:
        assert unit.bandwidth_gbps <= device.nominal_bandwidth_gbps
        assert (unit.single_core_bandwidth_gbps or 0) <= unit.bandwidth_gbps
        assert all(unit.sparse_gflops[p] > unit.peak_gflops[p] for p in unit.sparse_gflops)


def test_jetson_nano_gets_no_int8_on_its_gpu():
    assert "int8" not in load_device("jetson-nano").precisions("tensorrt")


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_written_out_parses_back_equal(name):
    device = load_device(name)
    assert parse_profile(to_toml(device), "copy") == device


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        load_device("rasberry-pi-5")
    assert caught.value.nearest == "raspberry-pi-5"


def test_a_format_that_the_device_cannot_run_lists_those_it_runs():
    with pytest.raises(DeviceError, match="tensorrt") as caught:
        load_device("raspberry-pi-4").unit_for("tensorrt")
    assert "litert" in caught.value.hint


def test_a_profile_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PI_5.replace('name = "raspberry-pi-5"', 'name = "mine"'), encoding="utf-8")
    assert load_device(path).name == "mine"
    with pytest.raises(DeviceError, match="no profile at"):
        load_device(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("memory_bytes = ", "memory_byte = ", "unknown key 'memory_byte'; did you mean 'memory_bytes'"),
        ("clock_ghz = 2.4\n", "", "units cpu lacks the key 'clock_ghz'"),
        ("cores = 4", 'cores = "four"', "units cpu: cores is 'four' (string), allowed an integer above 0"),
        ("cores = 4", "cores = true", "allowed an integer above 0"),
        ("bandwidth_gbps = 5.6", "bandwidth_gbps = -1", "allowed a number above 0"),
        ("bandwidth_gbps = 5.6", "bandwidth_gbps = nan", "allowed a number above 0"),
        ('unit = "cpu"', 'unit = "npu"', "names the unit 'npu'"),
        ('isa = ["neon", ', "isa = [1, ", "allowed a list of strings"),
        ("dispatch_us", "dispatch_uss", "did you mean 'dispatch_us'"),
        ("[[units]]", "[units]", "allowed an array of tables"),
        ("[power_w]", "[power_w", "is not TOML"),
    ],
)
def test_a_bad_profile_says_which_key_and_what_is_allowed(old, new, says):
    assert old in PI_5
    with pytest.raises(DeviceError) as caught:
        parse_profile(PI_5.replace(old, new), "mine.toml")
    assert says in caught.value.message
    assert "mine.toml" in caught.value.message
