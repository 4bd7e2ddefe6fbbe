"""Hostile archives: each is refused before its content is used, or holds exactly what was written."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.bundle.archive import read_archive, write_archive
from edgekit.errors import BundleError

SEEDS = range(4)


def _read_all(path) -> dict[str, bytes]:
    with Bundle.open(path) as bundle:
        held = {f"parts/{part.file}": bundle.part_path(part.name).read_bytes() for part in bundle.manifest.parts}
        held["assets/tokenizer.json"] = bundle.asset_path("tokenizer.json").read_bytes()
        held["manifest.json"] = bundle.manifest.to_bytes()
        held["report.html"] = bundle.report_html.encode()
        assert bundle.report == {"schema_version": 1}
        return held


def _refused_or_identical(path, data: bytes, wanted: dict[str, bytes]) -> bool:
    """True where it was refused. Any error but BundleError, or other content, fails the test."""
    path.write_bytes(data)
    try:
        held = _read_all(path)
    except BundleError as error:
        assert error.hint
        return True
    assert held == wanted
    return False


@pytest.fixture
def good(net, tmp_path):
    path = net.write(tmp_path / "good")
    return path.read_bytes(), _read_all(path)


def test_any_flipped_bit_is_refused(good, tmp_path):
    """Every byte belongs to a header that is compared whole, or to content whose digest is: none is free."""
    data, wanted = good
    rng = random.Random(0)
    places = {*range(600), *range(len(data) - 600, len(data)), *rng.sample(range(len(data)), 500)}
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        assert _refused_or_identical(tmp_path / "x", bytes(changed), wanted), f"byte {place} of {len(data)}"


def test_truncation_at_any_place_is_refused(good, tmp_path):
    data, wanted = good
    for end in {*range(0, len(data), 41), len(data) - 1, len(data) - 22, 0, 1, 21, 22}:
        assert _refused_or_identical(tmp_path / "x", data[:end], wanted)


@pytest.mark.parametrize("extra", [b"\0", b"PK\5\6" + bytes(18), bytes(100_000), b"\n"])
def test_appended_and_prepended_bytes_are_refused(good, tmp_path, extra):
    data, wanted = good
    assert _refused_or_identical(tmp_path / "x", data + extra, wanted)
    assert _refused_or_identical(tmp_path / "x", extra + data, wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_spliced_archives_are_refused(good, tmp_path, seed):
    data, wanted = good
    rng = random.Random(seed)
    for _ in range(150):
        start, end = sorted(rng.sample(range(len(data)), 2))
        into = rng.randrange(len(data))
        spliced = data[:into] + data[start:end] + data[into + rng.choice((0, end - start)) :]
        if spliced != data:
            _refused_or_identical(tmp_path / "x", spliced, wanted)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400), tail=st.sampled_from([b"", b"PK\5\6" + bytes(18)]))
def test_arbitrary_bytes_are_refused(tmp_path, noise, tail):
    path = tmp_path / "noise"
    path.write_bytes(noise + tail)
    with pytest.raises(BundleError):
        Bundle.open(path)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(
        st.from_regex(r"(parts|assets)/[a-z0-9]{1,12}\.onnx", fullmatch=True), st.binary(max_size=300), max_size=6
    )
)
def test_archives_round_trip_and_zipfile_agrees(files):
    stream = io.BytesIO()
    write_archive(stream, files)
    members = read_archive(stream, "it")
    assert {
        name: stream.getvalue()[member.offset : member.offset + member.size_bytes] for name, member in members.items()
    } == files
    with zipfile.ZipFile(stream) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def _zip(entries: list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED, mode: int = 0o100644) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type, info.create_system = mode << 16, compression, 3
            archive.writestr(info, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "/etc/passwd",
        "parts/../../escape",
        "parts\\escape",
        "C:evil",
        "parts/",
        "parts/a/b",
        "parts/.hidden",
        "parts/nul\0.onnx",
        "other.json",
        "parts/" + "x" * 200,
        "parts/ü.onnx",
    ],
)
def test_paths_outside_the_bundle_are_refused(tmp_path, name):
    stream = io.BytesIO()
    if name.isascii():
        write_archive(stream, {name: b"x"})
        data = stream.getvalue()
    else:
        data = _zip([(name, b"x")])
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "x")


def test_links_compressed_duplicate_and_case_twin_entries_are_refused(tmp_path, good):
    data, wanted = good
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    twin = ("parts/NET-fp32.onnx", b"x")
    with pytest.warns(UserWarning, match="Duplicate name"):
        duplicate = _zip([*entries, entries[-1]])
    for hostile in (
        _zip(entries, mode=0o120777),
        _zip(entries, mode=0o040755),
        _zip(entries, compression=zipfile.ZIP_DEFLATED),
        duplicate,
        _zip(sorted([*entries, twin])),
        _zip(entries[::-1]),
    ):
        assert _refused_or_identical(tmp_path / "x", hostile, wanted)


def test_huge_claims_cost_neither_time_nor_memory(tmp_path, good):
    data, _ = good
    end = len(data) - 22
    claims = []
    for count, size, offset in ((65535, 0xFFFFFFFF, 0xFFFFFFFF), (65535, 0, 0), (4096, end, 0), (1, 46, end - 46)):
        claims.append(data[:end] + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, offset, 0))
    first = data.index(b"PK\1\2")
    for field in range(16, 46, 2):
        changed = bytearray(data)
        changed[first + field : first + field + 2] = b"\xff\xff"
        claims.append(bytes(changed))
    tracemalloc.start()
    for claim in claims:
        (tmp_path / "x").write_bytes(claim)
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_sparse_gigabytes_are_refused_without_reading_them(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(5 << 30)
    with pytest.raises(BundleError, match="allowed"):
        Bundle.open(tmp_path / "x")
