from __future__ import annotations

import gc
import hashlib
import logging
import os
import warnings
from pathlib import Path

import pytest

from edgekit.bundle import Bundle, verify
from edgekit.errors import BundleError, UnknownNameError


def test_opens_what_was_written(bundle_path, net):
    with Bundle.open(bundle_path) as bundle:
        assert bundle.manifest == net.manifest()
        assert bundle.report == {"schema_version": 1}
        assert bundle.report_html == "<!DOCTYPE html>"
        assert bundle.digest == hashlib.sha256(net.manifest().to_bytes()).hexdigest()
        assert not bundle.is_signed


def test_part_path_holds_the_artifact_with_its_companions_beside_it(bundle_path, net):
    with Bundle.open(bundle_path) as bundle:
        path = bundle.part_path()
        assert path.name == "net-int8.onnx"
        assert path.read_bytes() == net.files["parts/net-int8.onnx"]
        assert (path.parent / "net-int8.onnx.data").read_bytes() == net.files["parts/net-int8.onnx.data"]
        assert bundle.part_path("net-fp32").read_bytes() == net.files["parts/net-fp32.onnx"]
        assert bundle.asset_path("tokenizer.json").read_bytes() == net.files["assets/tokenizer.json"]


def test_directory_and_archive_have_one_digest(net, tmp_path):
    paths = [net.write(tmp_path / str(flag), as_directory=flag) for flag in (False, True)]
    assert len({verify(path).digest for path in paths}) == 1


def test_unknown_part_and_asset_name_the_nearest(bundle_path):
    with Bundle.open(bundle_path) as bundle:
        with pytest.raises(UnknownNameError, match="did you mean 'net-int8'"):
            bundle.part_path("net-int")
        with pytest.raises(UnknownNameError, match=r"tokenizer\.json"):
            bundle.asset_path("tokens.json")


def test_verify_reports_what_it_checked(bundle_path):
    result = verify(bundle_path)
    assert (result.name, result.files, result.signed_by, result.key_checked) == ("net", 7, None, False)


def test_missing_path_and_plain_file_are_no_bundles(tmp_path):
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.open(tmp_path / "nowhere.edgekit")
    (tmp_path / "text").write_text("hello " * 100)
    with pytest.raises(BundleError, match="not an edgekit bundle"):
        Bundle.open(tmp_path / "text")
    with pytest.raises(BundleError, match=r"index\.json"):
        Bundle.open(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")


def test_cached_part_that_was_altered_is_made_again(net, tmp_path):
    path = net.write(tmp_path / "a")
    with Bundle.open(path) as bundle:
        cached = bundle.part_path()
        cached.write_bytes(b"altered")
        assert bundle.part_path() == cached
        assert cached.read_bytes() == net.files["parts/net-int8.onnx"]
        (cached.parent / "net-int8.onnx.data").unlink()
        bundle.part_path()
        assert (cached.parent / "net-int8.onnx.data").exists()
    assert not [entry for entry in cached.parent.parent.iterdir() if entry.name.startswith(".")]


def test_cached_part_that_is_a_link_is_made_again(net, tmp_path):
    with Bundle.open(net.write(tmp_path / "a")) as bundle:
        cached = bundle.part_path("net-fp32")
        twin = tmp_path / "twin"
        twin.write_bytes(cached.read_bytes())
        cached.unlink()
        cached.symlink_to(twin)
        assert not bundle.part_path("net-fp32").is_symlink()


def test_two_bundles_with_one_graph_but_other_weights_do_not_share_a_cache_folder(net, tmp_path):
    other = type(net)({**net.files, "parts/net-int8.onnx.data": b"other weights"})
    with Bundle.open(net.write(tmp_path / "a")) as first, Bundle.open(other.write(tmp_path / "b")) as second:
        assert first.part_path().parent != second.part_path().parent


def test_unwritable_cache_falls_back_to_a_temporary_folder_until_closed(net, tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("EDGEKIT_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING, "edgekit"), Bundle.open(net.write(tmp_path / "a")) as bundle:
        path = bundle.part_path()
        assert path.read_bytes() == net.files["parts/net-int8.onnx"]
        assert bundle.asset_path("tokenizer.json").exists()
    assert not path.exists()
    assert "EDGEKIT_CACHE" in caplog.text


def test_dropped_bundle_lets_go_of_its_files(net, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "blocked"))
    bundle = Bundle.open(net.write(tmp_path / "a"))
    path = bundle.part_path()
    assert path.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del bundle
        gc.collect()
    assert not path.exists()


def test_archive_replaced_after_opening_is_not_read(net, tmp_path):
    path = net.write(tmp_path / "a")
    with Bundle.open(path) as bundle:
        path.unlink()
        path.write_bytes(b"something else")
        assert bundle.part_path().read_bytes() == net.files["parts/net-int8.onnx"]


def test_directory_altered_after_opening_is_noticed_at_use(net, tmp_path):
    path = net.write(tmp_path / "a", as_directory=True)
    with Bundle.open(path) as bundle:
        (path / "parts" / "net-int8.onnx").write_bytes(b"x")
        with pytest.raises(BundleError, match=r"net-int8\.onnx"):
            bundle.part_path()


def _add(path: Path) -> None:
    (path / "parts" / "extra.onnx").write_bytes(b"x")


def _drop(path: Path) -> None:
    (path / "parts" / "net-fp32.onnx").unlink()


def _link(path: Path) -> None:
    part = path / "parts" / "net-fp32.onnx"
    copy = path.parent / "copy"
    copy.write_bytes(part.read_bytes())
    part.unlink()
    part.symlink_to(copy)


def _pipe(path: Path) -> None:
    os.mkfifo(path / "parts" / "pipe.onnx")


def _nest(path: Path) -> None:
    (path / "parts" / "folder").mkdir()


def _stray(path: Path) -> None:
    (path / "notes.txt").write_text("x")


def _case_twin(path: Path) -> None:
    (path / "parts" / "NET-int8.onnx").write_bytes(b"x")


def _link_folder(path: Path) -> None:
    (path / "parts").rename(path.parent / "elsewhere")
    (path / "parts").symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("harm", [_add, _drop, _link, _pipe, _nest, _stray, _case_twin, _link_folder])
def test_directory_with_other_files_than_listed_is_refused(net, tmp_path, harm):
    path = net.write(tmp_path / "a", as_directory=True)
    harm(path)
    with pytest.raises(BundleError):
        Bundle.open(path)
