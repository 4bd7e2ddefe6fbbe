from __future__ import annotations

import errno
import os
import stat
import zipfile

import pytest

from edgekit.bundle import Bundle, check_output, verify, write, write_bundle
from edgekit.errors import BundleError, OutputError


def _bytes(path):
    if path.is_file():
        return path.read_bytes()
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_same_contents_give_the_same_bytes(net, tmp_path, as_directory):
    first, second = (net.write(tmp_path / name, as_directory=as_directory) for name in ("a", "b"))
    assert _bytes(first) == _bytes(second)


def test_paths_and_bytes_as_sources_give_the_same_archive(net, tmp_path):
    sources = {}
    for name, data in net.files.items():
        sources[name] = tmp_path / name.replace("/", "-")
        sources[name].write_bytes(data)
    from_paths = write_bundle(tmp_path / "a", net.manifest(), sources, {"schema_version": 1}, "<!DOCTYPE html>")
    assert from_paths.read_bytes() == net.write(tmp_path / "b").read_bytes()


def test_archive_is_an_ordinary_stored_zip(net, tmp_path):
    with zipfile.ZipFile(net.write(tmp_path / "a")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.read("parts/net-int8.onnx") == net.files["parts/net-int8.onnx"]


def test_existing_output_needs_force(net, bundle_path, as_directory):
    before = _bytes(bundle_path)
    with pytest.raises(OutputError, match="--force"):
        net.write(bundle_path, as_directory=as_directory)
    assert _bytes(bundle_path) == before
    for other in (not as_directory, as_directory):
        verify(net.write(bundle_path, force=True, as_directory=other))


def test_folder_that_is_no_bundle_is_never_replaced(net, tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds no bundle"):
        net.write(precious, force=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_failing_disk_leaves_the_old_bundle_and_nothing_else(
    net, bundle_path, as_directory, monkeypatch, number, where
):
    before, names = _bytes(bundle_path), _names(bundle_path.parent)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(write, "_move_in", fail)
    with pytest.raises(OutputError, match="no space left" if number == errno.ENOSPC else "cannot write"):
        net.write(bundle_path, force=True, as_directory=as_directory)
    assert _bytes(bundle_path) == before
    assert _names(bundle_path.parent) == names


def test_interrupt_leaves_nothing_behind(net, tmp_path, monkeypatch, as_directory):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        net.write(tmp_path / "out" / "a", as_directory=as_directory)
    assert _names(tmp_path / "out") == []


def test_old_bundle_comes_back_where_the_new_one_cannot_take_its_place(net, tmp_path, monkeypatch):
    path = net.write(tmp_path / "a", as_directory=True)
    rename = type(path).rename

    def fail_second(self, target):
        if self.name.startswith(".a."):
            raise OSError(errno.EIO, "I/O error")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail_second)
    with pytest.raises(OutputError):
        net.write(path, force=True, as_directory=True)
    monkeypatch.undo()
    verify(path)
    assert _names(tmp_path) == ["a"]


def test_unwritable_place_is_an_output_error(net, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        net.write(tmp_path / "file" / "a.edgekit")
    with pytest.raises(OutputError, match="names no file"):
        check_output(tmp_path / "..", force=False)


def test_written_archive_has_the_usual_permissions(net, tmp_path):
    umask = os.umask(0o022)
    try:
        path = net.write(tmp_path / "a")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("parts/net-fp32.onnx"),
        lambda files: files.update({"parts/extra.onnx": b"x"}),
        lambda files: files.update({"parts/net-fp32.onnx": b"other"}),
        lambda files: files.update({"../escape": b"x"}),
    ],
)
def test_files_that_the_manifest_does_not_describe_are_refused(net, tmp_path, change):
    files = dict(net.files)
    change(files)
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "a", net.manifest(), files, {}, "")
    assert _names(tmp_path) == []


def test_empty_assets_and_companions_are_fine(net, tmp_path):
    files = {"parts/net-fp32.onnx": net.files["parts/net-fp32.onnx"]}
    part = net.manifest().part("net-fp32")
    manifest = net.manifest(parts=(part,), variants=({"name": "only", "parts": ("net-fp32",)},), assets=())
    path = write_bundle(tmp_path / "a", manifest, files, {}, "", as_directory=True)
    with Bundle.open(path) as bundle:
        assert bundle.part_path().read_bytes() == files["parts/net-fp32.onnx"]
