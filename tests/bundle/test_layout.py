from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from edgekit.bundle import Bundle
from edgekit.bundle.layout import MAX_BYTES, canonical_json, check_path
from edgekit.errors import BundleError


def _edit(path, name, change):
    file = path / name
    table = json.loads(file.read_bytes())
    change(table)
    file.write_bytes(canonical_json(table))


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
def test_newer_schema_says_to_upgrade(net, tmp_path, name, monkeypatch):
    path = net.write(tmp_path / "a", as_directory=True)
    if name == "manifest.json":
        monkeypatch.setattr("edgekit.bundle.contents.Contents.check_file", lambda *_: None)
        monkeypatch.setattr("edgekit.bundle.contents.check_manifest", lambda *_: None)
    _edit(path, name, lambda table: table.update(schema_version=2))
    with pytest.raises(BundleError, match="pip install --upgrade edgekit"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"schema_version": 1}',
        b'{"schema_version": -1, "files": {}}',
        b'{"schema_version": 1, "files": {}}',
        b'{"schema_version": 1e400, "files": {}}',
        b'{"schema_version": 1, "files": {"../x": {"size_bytes": 1, "sha256": "' + b"0" * 64 + b'"}}}',
        b'{"schema_version": 1, "files": {}, "more": 1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * (MAX_BYTES["index.json"] + 1),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_nonsense_in_the_index_is_a_bundle_error(net, tmp_path, data):
    path = net.write(tmp_path / "a", as_directory=True)
    (path / "index.json").write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(path)


def test_index_with_repeated_keys_is_refused(net, tmp_path):
    path = net.write(tmp_path / "a", as_directory=True)
    index = (path / "index.json").read_text()
    (path / "index.json").write_text(
        index.replace('"schema_version": 1', '"schema_version": 1,\n  "schema_version": 1')
    )
    with pytest.raises(BundleError, match="edited"):
        Bundle.open(path)


@pytest.mark.parametrize("path", ["parts/a.onnx", "assets/tokenizer.json", "manifest.json", "parts/A-b_c.1"])
def test_paths_of_a_bundle_pass(path):
    check_path(path, "it")


def test_manifest_checks_names_variants_and_tokenizer(net):
    parts = net.manifest().parts
    with pytest.raises(ValidationError, match="names repeat"):
        net.manifest(parts=(parts[0], parts[0]))
    with pytest.raises(ValidationError, match="allowed one or more of"):
        net.manifest(variants=({"name": "v", "parts": ("nothing",)},))
    text = {"kind": "text", "tokenizer": "other.json", "max_length": 16}
    with pytest.raises(ValidationError, match="not among the assets"):
        net.manifest(preprocess=text)


def test_manifest_bytes_round_trip(net):
    manifest = net.manifest()
    assert type(manifest).model_validate_json(manifest.to_bytes()) == manifest
    assert manifest.to_bytes() == net.manifest().to_bytes()
