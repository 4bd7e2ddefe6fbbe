from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from edgekit.bundle.layout import INDEX, SIGNATURE, Index
from edgekit.bundle.signature import generate_key
from edgekit.errors import BundleError, EdgekitError, SignatureError, UsageError
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.registry.blobs import Blobs, FolderBlobs
from edgekit.fleet.registry.intake import open_offered, read_offer
from tests.fleet.bundles import make_bundle


def send(folder: Path, blobs: Blobs, leave_out: str = "") -> Offer:
    """The files of a bundle that lies as a folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (INDEX, SIGNATURE, leave_out):
            data = path.read_bytes()
            blobs.append(hashlib.sha256(data).hexdigest(), 0, len(data), [data])
    signature = folder / SIGNATURE
    return Offer(index=(folder / INDEX).read_text(), signature=signature.read_text() if signature.exists() else "")


def with_index(offer: Offer, change: dict[str, tuple[int, str]]) -> Offer:
    """`change`: path -> (size, sha256), added to the index or instead of what is there."""
    files = json.loads(offer.index)["files"]
    files |= {path: {"size_bytes": size, "sha256": sha256} for path, (size, sha256) in change.items()}
    return Offer(index=Index.model_validate({"files": files}).to_bytes().decode(), signature=offer.signature)


def test_a_bundle_is_opened_from_its_files_wherever_they_are_kept(blobs: Blobs, tmp_path: Path) -> None:
    offer = send(make_bundle(tmp_path / "net", as_directory=True), blobs)
    with open_offered(offer, read_offer(offer), blobs, tmp_path / "laid", None) as bundle:
        assert bundle.manifest.name == "net" and bundle.manifest.golden


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    offer = send(make_bundle(tmp_path / "net", as_directory=True), blobs, leave_out="parts/model.onnx")
    with pytest.raises(UsageError, match=r"parts/model\.onnx .* is not here yet"):
        open_offered(offer, read_offer(offer), blobs, tmp_path / "laid", None)


def test_a_bundle_without_golden_answers_is_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    offer = send(make_bundle(tmp_path / "net", golden=False, as_directory=True), blobs)
    with pytest.raises(UsageError, match="no golden answers"):
        open_offered(offer, read_offer(offer), blobs, tmp_path / "laid", None)


@pytest.mark.parametrize(
    "path", ["../evil", "parts/../../evil", "/etc/passwd", "parts/a/b", "parts\\evil", "assets/..", "index.json"]
)
def test_no_path_leads_out_of_a_bundle(path: str, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    offer = send(make_bundle(tmp_path / "net", as_directory=True), blobs)
    data = b"evil"
    sha256 = hashlib.sha256(data).hexdigest()
    blobs.append(sha256, 0, len(data), [data])
    with pytest.raises(BundleError):
        read_offer(with_index(offer, {path: (len(data), sha256)}))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "index", ["", "{}", "[]", "null", '{"files": {}}', '{"schema_version": 99, "files": {}}', "\ud7ff"]
)
def test_an_index_that_is_none_is_refused(index: str) -> None:
    with pytest.raises(BundleError):
        read_offer(Offer(index=index))


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    offer = send(make_bundle(tmp_path / "net", as_directory=True), blobs)
    data = b"another model"
    sha256 = hashlib.sha256(data).hexdigest()
    blobs.append(sha256, 0, len(data), [data])
    forged = with_index(offer, {"parts/model.onnx": (len(data), sha256)})
    with pytest.raises(EdgekitError, match="disagree"):
        open_offered(forged, read_offer(forged), blobs, tmp_path / "laid", None)


def bomb() -> bytes:
    """A zip that names ten times the bytes that it has."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    return stream.getvalue()


@pytest.mark.parametrize("content", [bomb(), b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00."])
def test_bombs_and_pickles_do_not_get_in(content: bytes, tmp_path: Path) -> None:
    """A folder that holds one: it is refused where it would be made, and where it is offered."""
    blobs = FolderBlobs(tmp_path / "blobs")
    folder = make_bundle(tmp_path / "net", padding=100, as_directory=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    for asset in manifest["assets"]:
        if asset["file"] == "padding.bin":
            asset |= {"size_bytes": len(content), "sha256": sha256}
    text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"
    offer = send(folder, blobs)
    for data in (text, content):
        blobs.append(hashlib.sha256(data).hexdigest(), 0, len(data), [data])
    forged = with_index(
        offer,
        {
            "manifest.json": (len(text), hashlib.sha256(text).hexdigest()),
            "assets/padding.bin": (len(content), sha256),
        },
    )
    with pytest.raises(BundleError, match=r"pickle|zip"):
        open_offered(forged, read_offer(forged), blobs, tmp_path / "laid", None)


def test_a_key_that_is_asked_for_is_asked_of_every_bundle(tmp_path: Path) -> None:
    blobs, key = FolderBlobs(tmp_path / "blobs"), tmp_path / "key"
    public = generate_key(key)
    unsigned = send(make_bundle(tmp_path / "one", as_directory=True), blobs)
    with pytest.raises(SignatureError, match="not signed"):
        open_offered(unsigned, read_offer(unsigned), blobs, tmp_path / "laid", public)
    signed = send(make_bundle(tmp_path / "two", as_directory=True, sign_key=key), blobs)
    open_offered(signed, read_offer(signed), blobs, tmp_path / "laid2", public).close()


def test_more_than_a_bundle_may_weigh_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    offer = send(make_bundle(tmp_path / "net", as_directory=True), FolderBlobs(tmp_path / "blobs"))
    with pytest.raises(UsageError, match="allowed"):
        read_offer(with_index(offer, {"parts/huge.bin": (1 << 40, "0" * 64)}))
