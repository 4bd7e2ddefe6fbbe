"""The agent's folder.

identity.json                      who this is, and whose fleet
device.pem fleet.pem root.json     its certificate with its key, the fleet's authority, where trust in bundles begins
trust/                             the fleet's signed metadata, as it was seen last
slots/<digest>                     bundles as folders: the one that counts and one more (before it, or on its way);
                                   on servers also those that are kept
state.json                         which one counts, and what became of others
current                            a link to the slot that counts, for applications
plan.json                          how the fleet would run it, for applications
reached.json                       whether the fleet is reached, for a person who asks
blobs/ part/                       files by content, whole and on their way; slots hold hard links to them
windows/ spool/                    what was seen, until the fleet has it; what applications see, until the agent has it

The group of the folder may read bundles and plan and write into the spool; keys are the agent's alone.

`state.json` is replaced by one rename after its bytes are on disk, so that it is the old one or the new one whenever
the power goes. No slot that it names is ever written to. `current` is made from it at each start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from edgekit.bundle.manifest import Tier
from edgekit.errors import BundleError, ConflictError
from edgekit.fleet.agent.disk import Disk, output_error
from edgekit.fleet.protocol.wire import Digest, Heard, Text

MAX_REMEMBERED = 16
STATE = "state.json"
SPOOL_MODE = 0o3770  # who may write there may remove only what is his


class State(Heard):
    """`active`: the slot that counts. `confirmed`: the runtime has answered with it; `heard`: the fleet was reached
    with it. `previous`: what counted before, to fall back to. `kept`: others that a server answers for. `refused`:
    digest -> why it was not taken; it is not tried again until the fleet asks for another one in between."""

    active: Digest | None = None
    confirmed: bool = True
    heard: bool = True
    checked: int = 0
    right: int = 0
    previous: Digest | None = None
    kept: tuple[Digest, ...] = ()
    refused: dict[Digest, Text] = Field(default_factory=dict)
    tier: Tier = "device"

    @property
    def named(self) -> frozenset[str]:
        """Slots that must not be touched."""
        return frozenset(one for one in (self.active, self.previous, *self.kept) if one is not None)


class Home:
    """`path` is this agent's alone."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self.disk = disk or Disk()
        self.blobs, self.part, self.slots = path / "blobs", path / "part", path / "slots"
        self.windows, self.spool = path / "windows", path / "spool"

    def make(self) -> None:
        """Raises OutputError where the folder cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.blobs, self.part, self.slots, self.windows, self.spool):
                if not folder.is_dir():
                    self.disk.make_folder(folder, SPOOL_MODE if folder == self.spool else 0o750)
                    self.disk.sync(folder.parent)
        except OSError as error:
            raise output_error(self.path, error) from error

    def unmake(self) -> None:
        """What `make` made, as far as nothing came into it."""
        with contextlib.suppress(OSError):
            for folder in (self.blobs, self.part, self.slots, self.windows, self.spool, self.path):
                folder.rmdir()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Raises ConflictError where another agent runs here, OutputError where there is no such folder. The folder
        itself is locked, which works on a read-only file system too."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            if not _is_locked(descriptor):
                raise ConflictError(f"another agent runs in {self.path}", hint="stop it, or give another --home")
            yield
        finally:
            os.close(descriptor)

    def slot(self, digest: str) -> Path:
        return self.slots / digest

    @property
    def current(self) -> Path:
        return self.path / "current"

    def read_state(self) -> State:
        """Raises BundleError for a file that is none of ours."""
        try:
            return State.model_validate_json((self.path / STATE).read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            raise BundleError(f"{self.path / STATE} cannot be read", hint="the agent mends it at its start") from error

    def write_state(self, state: State) -> None:
        """Raises OutputError; the state on disk is then the one before."""
        self.replace(STATE, state.model_dump_json(indent=2).encode(), 0o640)

    def point(self, digest: str | None) -> None:
        """`current` leads to the slot. Raises OutputError."""
        wanted = None if digest is None else self.slot(digest).relative_to(self.path)
        if self.pointed() == wanted:
            return
        fresh = self.path / ".current"
        try:
            if wanted is None:
                self.disk.remove(self.current)
            else:
                if fresh.is_symlink():
                    self.disk.remove(fresh)
                self.disk.symlink(wanted, fresh)
                self.disk.rename(fresh, self.current)
            self.disk.sync(self.path)
        except OSError as error:
            raise output_error(self.current, error) from error

    def pointed(self) -> Path | None:
        """Where `current` leads; None where there is none."""
        return self.current.readlink() if self.current.is_symlink() else None

    def replace(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """`name` holds `data` after this, or what it held before. Raises OutputError."""
        fresh = self.path / f".{name}"
        try:
            self.disk.create(fresh, data, mode)
            self.disk.sync(fresh)
            self.disk.rename(fresh, self.path / name)
            self.disk.sync(self.path)
        except OSError as error:
            raise output_error(self.path / name, error) from error


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
