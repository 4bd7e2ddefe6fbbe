from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest

from edgekit.bundle import Bundle, write_bundle
from edgekit.deploy import containerfile
from edgekit.deploy.containerfile import EXTRAS
from edgekit.errors import DeviceError, UsageError

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
    assert 'COPY ["net.edgekit", "/bundles/net.edgekit"]' in text_of(tail_bundle, with_bundle=True).splitlines()


@pytest.mark.parametrize("name", ["my cats.edgekit", " (1).edgekit", "Katzen-Ü.edgekit", "-f.edgekit", "a,b=c~d@e"])
def test_a_name_with_spaces_is_copied_whole(tail_bundle: Path, tmp_path: Path, name: str) -> None:
    line = text_of(shutil.copy(tail_bundle, tmp_path / name), with_bundle=True).splitlines()[-4]
    assert line.startswith("COPY ")
    assert json.loads(line.removeprefix("COPY ")) == [name, f"/bundles/{name}"]


@pytest.mark.parametrize(
    "name", ["a$(b).edgekit", "a\nRUN b", "it's", 'a"b', "a*b", "a[b]", "a?b", "a\\b", "`a`", "a;b"]
)
def test_a_name_that_a_builder_would_read_otherwise_is_refused(tail_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copy(tail_bundle, tmp_path / name)
    with pytest.raises(UsageError) as caught:
        text_of(bundle, with_bundle=True)
    assert repr(name) in caught.value.message and "rename" in caught.value.hint
    assert "RUN b" not in text_of(bundle)


def test_the_name_of_a_manifest_starts_no_line_of_its_own(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with Bundle.open(make_bundle({"tail": ("cloud", X, Y)})) as bundle:
        manifest = bundle.manifest.model_copy(update={"name": "Net\nRUN evil; $(x)"})
        files = {"parts/tail.onnx": bundle.part_path("tail").read_bytes()}
    named = write_bundle(tmp_path / "named.edgekit", manifest, files, {"schema_version": 1}, "<!doctype html>")
    text = text_of(named)
    assert "RUN evil" not in text and "-t REGISTRY/net-run-evil-x:" in text


def test_a_format_without_an_extra_is_named(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle({"tail": ("cloud", X, Y)}, format="tensorrt")
    with pytest.raises(DeviceError, match=r"Net\.9\.tail \(tensorrt\)"):
        text_of(bundle)
