"""What the fleet's signed metadata vouches for: The Update Framework's client workflow, by its reference library.

The metadata that was seen last lies in the agent's folder, so that an older one is known as such. Nothing here touches
what runs: metadata that has ended, or that somebody withholds, stops updates and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit.errors import AbsentError, EdgekitError, RemoteError, SignatureError
from edgekit.fleet.agent.disk import Disk, output_error
from edgekit.fleet.protocol.bundles import Offer

SLOWEST_S = 120.0  # one file of metadata: who drips it byte by byte holds an agent up no longer
BASE = "fleet:/"  # the fetcher's own: only what stands behind it is asked for

Get = Callable[[str], Iterator[bytes]]


class Trusted:
    """`folder`: what was seen last, made where it is not there. `root`: the metadata that trust begins with. `get`: a
    file of metadata by its name; raises AbsentError where there is none."""

    def __init__(self, folder: Path, root: bytes, get: Get, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._root, self._fetcher = folder, root, _Fetcher(get, clock)

    def refresh(self) -> Updater:
        """The newest metadata, verified; for one step of work. Raises SignatureError, OutputError, and like `get`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            updater = Updater(
                str(self._folder),
                BASE,
                fetcher=self._fetcher,
                config=UpdaterConfig(prefix_targets_with_hash=False),
                bootstrap=self._root,
            )
            updater.refresh()
            self._settle()
        except OSError as error:
            raise output_error(self._folder, error) from error
        except (RepositoryError, DownloadError) as error:
            raise refusal(error) from error
        return updater

    def target(self, path: str, updater: Updater | None = None) -> TargetFile:
        """Length and hashes of what lies at `path`. Raises SignatureError where the metadata does not name it, and
        like `refresh`."""
        try:
            found = (updater or self.refresh()).get_targetinfo(path)
        except OSError as error:
            raise output_error(self._folder, error) from error
        except (RepositoryError, DownloadError) as error:
            raise refusal(error) from error
        if found is None:
            raise SignatureError(
                f"the fleet's signed metadata does not name {path:.80}", hint="was the bundle removed, or never signed?"
            )
        return found

    def _settle(self) -> None:
        """On the disk, so that a power cut does not make an older version new again."""
        for path in (*self._folder.glob("*.json"), self._folder / "root_history", self._folder):
            Disk().sync(path)


def vouched(trusted: Trusted, path: str, offer: Callable[[], Offer]) -> Offer:
    """The index and the signature of a bundle, which are asked for only once the metadata names them, and are what it
    says. Raises SignatureError, and like `Trusted.target`."""
    target = trusted.target(path)
    found = offer()
    try:
        target.verify_length_and_hashes(found.index.encode())
        sealed = (target.custom or {}).get("signature")
        if sealed is not None:
            TargetFile(sealed["length"], sealed["hashes"], "signature.json").verify_length_and_hashes(
                found.signature.encode()
            )
        elif found.signature:
            raise LengthOrHashMismatchError("a signature that the metadata does not name")
    except LengthOrHashMismatchError as error:
        raise SignatureError(
            f"the index of {path[:16]} is another one than was signed: {error}",
            hint="somebody may have changed the registry: compare it with where the bundle came from",
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError(f"the metadata of {path[:16]} cannot be read", hint="push the bundle again") from error
    return found


class _Fetcher(FetcherInterface):
    """Over the agent's own connection, with its certificate and nobody's proxy."""

    def __init__(self, get: Get, clock: Callable[[], float]) -> None:
        self._get, self._clock = get, clock

    def _fetch(self, url: str) -> Iterator[bytes]:
        until = self._clock() + SLOWEST_S
        try:
            for chunk in self._get(url.removeprefix(BASE)):
                if self._clock() > until:
                    raise SlowRetrievalError(f"{url} took longer than {SLOWEST_S:g} s")
                yield chunk
        except AbsentError as error:
            raise DownloadHTTPError(error.message, 404) from error


def refusal(error: RepositoryError | DownloadError) -> EdgekitError:
    """What the library found, as an error that says what it may mean."""
    said = str(error) or type(error).__name__
    if isinstance(error, ExpiredMetadataError):
        here = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        return SignatureError(
            f"the fleet's signed metadata has ended ({said}); this device's clock says {here}",
            hint="newer ones are withheld, the fleet has not renewed them, or the clock is wrong; what runs goes on",
        )
    if isinstance(error, BadVersionNumberError):
        return SignatureError(
            f"the fleet offers older signed metadata than this device has seen: {said}",
            hint="somebody replays them, or a backup was restored: restart the service, which signs newer ones",
        )
    if isinstance(error, UnsignedMetadataError):
        return SignatureError(
            f"the fleet's metadata is not signed by the keys that this device trusts: {said}",
            hint="keys that were changed without their owners need the device to enroll again",
        )
    if isinstance(error, (LengthOrHashMismatchError, DownloadLengthMismatchError)):
        return SignatureError(
            f"the fleet's signed metadata does not fit together: {said}", hint="somebody may mix old and new"
        )
    if isinstance(error, RepositoryError):
        return SignatureError(f"the fleet's signed metadata cannot be used: {said}", hint="what runs goes on")
    return RemoteError(f"the fleet's signed metadata did not come: {said}", hint="it is asked for again")
