import pytest

from edgekit.devices import doctor
from edgekit.devices.doctor import diagnose, satisfies
from edgekit.registry import EXPORTERS, SESSIONS


@pytest.mark.parametrize(
    ("got", "wanted", "fits"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.12.1", "==2.13.0", False),
        ("1.31.1", ">=1.22", True),
        ("1.9", ">=1.22", False),
        ("6.33.6", ">=5,<7", True),
        ("7.0", ">=5,<7", False),
        ("3.0rc1", ">=3", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(got, wanted, fits):
    assert satisfies(got, wanted) is fits


def test_every_format_has_a_state_and_what_is_missing_has_a_command():
    states = {state.format: state for state in diagnose().formats}
    assert set(states) == {*EXPORTERS, *SESSIONS}
    for state in states.values():
        assert state.can_run or state.run_command
        assert state.can_export or state.export_command or state.format not in EXPORTERS


def test_a_machine_with_nothing_installed_gets_the_exact_commands(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    result = diagnose()
    states = {state.format: state for state in result.formats}
    assert states["onnx"].run_command == 'pip install "edgekit[onnx]"'
    assert states["litert"].run_command == 'pip install "edgekit[litert]"'
    assert states["litert"].export_command == 'pip install "edgekit[export]"'
    assert "JetPack" in states["tensorrt"].run_command
    assert all(package.version is None and not package.fits for package in result.packages)
    assert {tool.name: tool.command for tool in result.tools}["g++"] == "apt-get install g++"


def test_the_packages_are_those_of_the_projects_metadata():
    packages = {package.name: package for package in diagnose().packages}
    assert packages["numpy"].fits and packages["numpy"].extra == ""
    assert packages["torch"].wanted == "==2.13.0"
    assert "edgekit" not in packages
