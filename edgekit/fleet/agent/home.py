"""The agent's folder.

identity.json                      who this is, and whose fleet
device.key device.pem fleet.pem    its key and certificate, and the fleet's authority
slots/a slots/b                    two bundles as folders; one of them counts
state.json                         which one, and what became of others
current                            a link to the slot that counts, for applications
blobs/ part/                       files by content, whole and on their way; slots hold hard links to them

`state.json` is replaced by one rename after its bytes are on disk, so that it is the old one or the new one whenever
the power goes. `current` is made from it at each start.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgekit.errors import BundleError, OutputError
from edgekit.fleet.protocol.agents import PlanOrder
from edgekit.fleet.protocol.wire import Digest, Text, Wire

SlotName = Literal["a", "b"]
SLOTS: tuple[SlotName, ...] = ("a", "b")
MAX_REMEMBERED = 16


class State(Wire):
    """`active`: the slot that counts, with `digest` in it; `confirmed`: it has answered its golden inputs since it was
    switched to. `previous`: what the other slot holds. `refused`: digest -> why it was not taken; it is not tried again
    until the fleet asks for another one in between. `generation`: of the orders that were last followed."""

    active: SlotName | None = None
    digest: Digest | None = None
    confirmed: bool = True
    checked: int = 0
    right: int = 0
    previous: Digest | None = None
    refused: dict[Digest, Text] = Field(default_factory=dict)
    generation: int = 0
    plan: PlanOrder | None = None

    @property
    def free(self) -> SlotName:
        return "b" if self.active == "a" else "a"


class Home:
    """`path` is this agent's alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs, self.part, self.slots = path / "blobs", path / "part", path / "slots"

    def make(self) -> None:
        """Raises OutputError where the folder cannot be written."""
        try:
            for folder in (self.path, self.blobs, self.part, self.slots):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise output_error(self.path, error) from error

    def slot(self, name: SlotName) -> Path:
        return self.slots / name

    @property
    def current(self) -> Path:
        return self.path / "current"

    def read_state(self) -> State:
        """Raises BundleError for a file that is none of ours: what is in the slots is then not trusted."""
        try:
            return State.model_validate_json((self.path / "state.json").read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            raise BundleError(
                f"{self.path / 'state.json'} cannot be read: {error}",
                hint="remove it: the bundle comes again",
            ) from error

    def write_state(self, state: State) -> None:
        """Raises OutputError; the state on disk is then the one before."""
        self.replace("state.json", state.model_dump_json(indent=2).encode())

    def point(self, slot: SlotName | None) -> None:
        """`current` leads to the slot."""
        try:
            if slot is None:
                self.current.unlink(missing_ok=True)
                return
            fresh = self.path / ".current"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self.slot(slot).relative_to(self.path))
            fresh.replace(self.current)
        except OSError as error:
            raise output_error(self.current, error) from error

    def replace(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """`name` holds `data` after this, or what it held before. Raises OutputError."""
        fresh = self.path / f".{name}"
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self.path / name)
            sync_folder(self.path)
        except OSError as error:
            raise output_error(self.path / name, error) from error

    def clear(self, slot: SlotName) -> None:
        shutil.rmtree(self.slot(slot), ignore_errors=True)

    def collect(self) -> None:
        """Lets go of files that no slot holds."""
        for blob in self.blobs.iterdir():
            if blob.stat().st_nlink == 1:
                blob.unlink()


def read_json(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def sync_folder(folder: Path) -> None:
    """Makes the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left for {path}", hint="free some; what runs goes on running")
    if error.errno == errno.EROFS:
        return OutputError(f"{path} is on a read-only file system", hint="mount it writable; what runs goes on")
    return OutputError(f"cannot write {path}: {error.strerror}", hint="check the folder; what runs goes on running")
