"""Files by their SHA-256 in an S3-compatible store; what is on its way lies in a local folder until it is whole.

`s3://bucket/prefix`, or `s3://bucket/prefix?endpoint=https://minio:9000&region=eu-1` for a store that is not Amazon's.
Keys and other settings are boto3's usual ones (environment, ~/.aws, instance roles). The store checks each object's
SHA-256 itself (S3's own checksum), and nothing is ever written over.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edgekit.bundle.layout import CHUNK_BYTES
from edgekit.errors import MissingExtraError, StoreError, UsageError
from edgekit.fleet.registry.blobs import Blobs, FolderBlobs

CACHE_BYTES = 4 << 30
ABSENT = ("404", "NoSuchKey", "NotFound")
SETTINGS = ("endpoint", "region")


class S3Blobs:
    """`folder`: for what is on its way, and copies of up to `cache_bytes` of what was asked for as a file."""

    def __init__(self, url: str, folder: Path, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises UsageError for the URL, StoreError where the bucket cannot be reached, MissingExtraError."""
        parts = urlsplit(url)
        settings = dict(parse_qsl(parts.query))
        unknown = sorted(settings.keys() - {*SETTINGS})
        if parts.scheme != "s3" or not parts.netloc or unknown:
            raise UsageError(
                f"object store {url!r:.200}" + (f" with {', '.join(unknown)}" if unknown else ""),
                hint=f"s3://bucket/prefix?endpoint=https://host:9000, allowed settings: {', '.join(SETTINGS)}",
            )
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise MissingExtraError("boto3", "s3", "an S3-compatible store") from error
        self._failures = (BotoCoreError, ClientError)
        self._refused = ClientError
        self.bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._cache_bytes = cache_bytes
        self._here = FolderBlobs(folder)
        try:
            self._client = boto3.client(
                "s3",
                endpoint_url=settings.get("endpoint"),
                region_name=settings.get("region"),
                config=Config(retries={"max_attempts": 4, "mode": "standard"}, connect_timeout=5, read_timeout=30),
            )
            self._client.head_bucket(Bucket=self.bucket)
        except (*self._failures, ValueError) as error:
            raise self._told(error) from error

    def size(self, sha256: str) -> int | None:
        try:
            return int(self._client.head_object(Bucket=self.bucket, Key=self._key(sha256))["ContentLength"])
        except self._failures as error:
            if self._is_absent(error):
                return None
            raise self._told(error) from error

    def received(self, sha256: str) -> int:
        return self._here.size(sha256) or self._here.received(sha256)

    def append(self, sha256: str, at: int, size: int, chunks: Iterable[bytes]) -> int:
        if self.size(sha256) is not None:
            return size
        if self._here.size(sha256) is None:
            here = self._here.append(sha256, at, size, chunks)
            if here < size:
                return here
        self._upload(sha256)
        return size

    def _upload(self, sha256: str) -> None:
        """Of one that is whole and verified here."""
        try:
            with self._here.path(sha256).open("rb") as stream:
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=self._key(sha256),
                    Body=stream,
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                    ContentType="application/octet-stream",
                )
        except self._failures as error:
            raise self._told(error) from error
        self._shrink()

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        total = self.size(sha256)
        if total is None:
            raise KeyError(sha256)
        last = (total if end is None else min(end, total)) - 1
        if last < start:
            return iter(())
        return self._chunks(sha256, start, last)

    def _chunks(self, sha256: str, start: int, last: int) -> Iterator[bytes]:
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(sha256), Range=f"bytes={start}-{last}")
            yield from answer["Body"].iter_chunks(CHUNK_BYTES)
        except self._failures as error:
            raise self._told(error) from error

    def path(self, sha256: str) -> Path:
        found = self._here.local(sha256)
        if found is not None:
            return found
        size = self.size(sha256)
        if size is None:
            raise KeyError(sha256)
        at = self._here.received(sha256)
        self._here.append(sha256, at, size, self.read(sha256, at))
        return self._here.path(sha256)

    def local(self, sha256: str) -> Path | None:
        return self._here.local(sha256)

    def remove(self, sha256: str) -> None:
        self._here.remove(sha256)
        try:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(sha256))
        except self._failures as error:
            raise self._told(error) from error

    def changed(self) -> Iterator[tuple[str, float]]:
        for found in self._objects():
            yield self._name(found), found["LastModified"].timestamp()
        yield from self._here.changed()

    def __iter__(self) -> Iterator[str]:
        return (self._name(found) for found in self._objects())

    def _objects(self) -> Iterator[dict[str, Any]]:
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._key("")
            ):
                yield from page.get("Contents", ())
        except self._failures as error:
            raise self._told(error) from error

    def _shrink(self) -> None:
        """Lets go of the copies that were made first, beyond what the cache may hold."""
        found = sorted(((when, sha256) for sha256, when in self._here.changed()), reverse=True)
        held = 0
        for _, sha256 in found:
            held += self._here.size(sha256) or 0
            if held > self._cache_bytes and self._here.size(sha256) is not None:
                self._here.remove(sha256)

    def _key(self, sha256: str) -> str:
        return f"{self._prefix}/{sha256}" if self._prefix else sha256

    def _name(self, found: dict[str, Any]) -> str:
        return str(found["Key"]).rpartition("/")[2]

    def _is_absent(self, error: BaseException) -> bool:
        return isinstance(error, self._refused) and str(error.response["Error"]["Code"]) in ABSENT

    def _told(self, error: BaseException) -> StoreError:
        return StoreError(
            f"the object store {self.bucket} cannot be used: {str(error)[:300]}",
            hint="check its address, bucket and keys (AWS_ACCESS_KEY_ID, ...); nothing was changed; try again",
        )


def open_blobs(url: str | None, folder: Path) -> Blobs:
    """`url` None: in `folder`; else s3://... with `folder` for what is on its way."""
    return FolderBlobs(folder) if url is None else S3Blobs(url, folder)
