from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.devices.device import ALIASES, Device, load_device, parse_profile, profile_names

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("words", [("devices",), ("devices", "list")])
def test_the_list_holds_every_profile_and_alias(
    invoke: Invoke, invoke_json: InvokeJson, words: tuple[str, ...]
) -> None:
    lines = invoke(*words).stdout.splitlines()
    assert {line.split()[0] for line in lines[1:]} == set(profile_names())
    payload = invoke_json(*words)
    assert [device["name"] for device in payload["devices"]] == profile_names()
    assert payload["aliases"] == ALIASES


@pytest.mark.parametrize("name", [*profile_names(), *ALIASES])
def test_show_tells_the_units_formats_and_sources(invoke: Invoke, name: str) -> None:
    text, device = invoke("devices", "show", name).stdout, load_device(name)
    for wanted in (device.title, *device.formats, *(unit.name for unit in device.units), *device.sources):
        assert wanted in text


def test_show_as_toml_is_a_profile_again(invoke: Invoke, tmp_path: Path) -> None:
    text = invoke("devices", "show", "jetson", "--toml").stdout
    assert parse_profile(text, "shown") == load_device("jetson")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert "jetson-orin-nano-super" in invoke("devices", "show", path).stdout


def test_json_of_the_group_reaches_its_commands(invoke: Invoke) -> None:
    assert invoke("devices", "--json", "show", "jetson").stdout.startswith("{")


def test_a_profile_that_does_not_fit_is_a_device_error(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n')
    assert "mine.toml" in invoke("devices", "show", path, code=5).stderr


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A probe that takes no time."""
    device = load_device("raspberry-pi-4")
    monkeypatch.setattr("edgekit.devices.probe.probe", lambda threads, progress: device)
    return device


def test_probe_writes_a_profile_that_loads(
    invoke: Invoke, invoke_json: InvokeJson, probed: Device, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    assert f"--device {path}" in invoke("devices", "probe", "-o", path).stdout
    assert load_device(path) == probed
    assert invoke_json("devices", "probe")["device"]["name"] == probed.name


def test_a_bandwidth_that_was_measured_is_not_called_nominal(
    invoke: Invoke, probed: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "GB/s nominal" in invoke("devices", "probe").stdout
    measured = replace(probed, estimated=("nominal_bandwidth_gbps",))
    monkeypatch.setattr("edgekit.devices.probe.probe", lambda threads, progress: measured)
    told = invoke("devices", "probe").stdout
    assert f"{probed.nominal_bandwidth_gbps:g} GB/s measured by copying, nominal unknown" in told


def test_probe_replaces_a_file_only_with_force(invoke: Invoke, probed: Device, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    invoke("devices", "probe", "-o", path, code=10)
    assert path.read_text() == "mine"
    invoke("devices", "probe", "-o", path, "--force")
    assert load_device(path) == probed


def test_probe_into_a_missing_folder_is_an_output_error(invoke: Invoke, probed: Device, tmp_path: Path) -> None:
    invoke("devices", "probe", "-o", tmp_path / "missing" / "mine.toml", code=10)
