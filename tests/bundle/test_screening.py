from __future__ import annotations

import io
import pickle
import struct
import zipfile

import pytest

from edgekit.bundle import Bundle, describe_file, write, write_bundle
from edgekit.bundle.screening import refuse_pickle, starts_like_pickle
from edgekit.errors import BundleError


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


PICKLE = pickle.dumps({"weights": [1, 2, 3]})

HOSTILE = {
    "plain.onnx": PICKLE,
    "old.onnx": pickle.dumps([1], protocol=2),
    "weights.pkl": b"anything",
    "torch.onnx": _zip({"archive/data.pkl": PICKLE}),
    "renamed.onnx": _zip({"archive/innocent.txt": PICKLE}),
    "nested.pt2": _zip({"ep/data/sample_inputs/model.pt": _zip({"model/data.pkl": PICKLE})}),
    "compressed.pt2": _zip({"data/file": PICKLE}, zipfile.ZIP_DEFLATED),
    "prefixed.onnx": b"\x08\x0a header" + _zip({"archive/data.pkl": PICKLE}),
    "bomb.pt2": _zip({"data/zeros": bytes(1_000_000)}, zipfile.ZIP_DEFLATED),
    "broken.pt2": _zip({"a": b"b"})[:-30],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_are_refused_however_they_hide(name):
    with pytest.raises(BundleError):
        refuse_pickle(name, io.BytesIO(HOSTILE[name]))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [[], {}, 1, "text", b"bytes", object(), 1.5, (1, 2)])
def test_every_protocol_is_recognised(protocol, value):
    assert starts_like_pickle(pickle.dumps(value, protocol=protocol))


def test_packages_of_libraries_and_sources_pass():
    members = {"m/data/aotinductor/model/c.wrapper.so": b"\x7fELF" + bytes(64), "m/archive_format": b"pt2"}
    refuse_pickle("net.pt2", io.BytesIO(_zip(members)))


def test_flatbuffer_whose_root_offset_looks_like_a_pickle_passes():
    refuse_pickle("net.tflite", io.BytesIO(struct.pack("<I", 0x0480) + b"TFL3" + bytes(64)))


def test_deep_nests_and_overlapping_members_are_refused():
    deep = b"end"
    for _ in range(5):
        deep = _zip({"inner.zip": deep})
    with pytest.raises(BundleError, match="deep"):
        refuse_pickle("net.pt2", io.BytesIO(deep))
    data = bytearray(_zip({"a": bytes(50_000), "b": bytes(10)}))
    second = data.rindex(b"PK\1\2")
    data[second + 20 : second + 28] = struct.pack("<II", 50_000, 50_000)
    with pytest.raises(BundleError):
        refuse_pickle("net.pt2", io.BytesIO(bytes(data)))


@pytest.mark.parametrize("as_directory", [False, True])
def test_bundle_with_a_pickle_inside_is_neither_written_nor_opened(net, tmp_path, as_directory, monkeypatch):
    data = HOSTILE["nested.pt2"]
    part = net.manifest().part("net-fp32")
    line = describe_file("net.pt2", data)
    manifest = net.manifest(
        parts=(part.model_copy(update=line.model_dump()),),
        variants=({"name": "only", "parts": ("net-fp32",)},),
        assets=(),
    )
    files = {"parts/net.pt2": data}
    with pytest.raises(BundleError, match="pickle"):
        write_bundle(tmp_path / "a", manifest, files, {}, "", as_directory=as_directory)
    monkeypatch.setattr(write, "refuse_pickle", lambda name, content: None)
    path = write_bundle(tmp_path / "a", manifest, files, {}, "", as_directory=as_directory)
    with pytest.raises(BundleError, match="pickle"):
        Bundle.open(path)
