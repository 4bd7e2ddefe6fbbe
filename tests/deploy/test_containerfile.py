from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.deploy import containerfile
from edgekit.deploy.containerfile import EXTRAS
from edgekit.errors import DeviceError

REPOSITORY = Path(__file__).resolve().parents[2]
X, Y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)


def text_of(bundle: Path, with_bundle: bool = False) -> str:
    with Bundle.open(bundle) as opened:
        return containerfile(opened, "cloud", with_bundle=with_bundle)


def test_it_installs_the_runtime_of_the_parts_from_source_and_runs_as_nobody_special(tail_bundle: Path) -> None:
    lines = text_of(tail_bundle).splitlines()
    assert 'RUN pip install --no-cache-dir "/src[serve,onnx]" && rm -rf /src' in lines
    assert lines[-1] == 'ENTRYPOINT ["edgekit"]' and "USER 10001" in lines
    assert not any("/bundles" in line for line in lines)


def test_what_it_copies_is_in_the_source_and_its_extras_exist(tail_bundle: Path) -> None:
    copied = [
        word for line in text_of(tail_bundle).splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]
    ]
    assert copied and all((REPOSITORY / name).exists() for name in copied)
    assert {"serve", *EXTRAS.values()} <= set(metadata("edgekit").get_all("Provides-Extra") or ())


def test_the_image_can_carry_the_bundle(tail_bundle: Path) -> None:
    assert "COPY net.edgekit /bundles/net.edgekit" in text_of(tail_bundle, with_bundle=True).splitlines()


def test_a_format_without_an_extra_is_named(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle({"tail": ("cloud", X, Y)}, format="tensorrt")
    with pytest.raises(DeviceError, match=r"Net\.9\.tail \(tensorrt\)"):
        text_of(bundle)
