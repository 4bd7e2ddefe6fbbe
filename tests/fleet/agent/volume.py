"""A disk whose power can be cut: what would lie on it afterwards, in several variants.

A model of what POSIX promises, and not of what one file system happens to do: bytes are safe once the file was synced,
names once their folder was, and each folder loses its latest changes by itself. Everything is also done for real, so
that the agent reads what it wrote; the two must agree at the end, or something went past the seam.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.fleet.agent.disk import Disk

Entries = dict[str, "Node"]


class PowerCut(BaseException):
    """Not an Exception: nobody may handle it."""


@dataclass(eq=False)
class Node:
    """A file (`data`), a link (`target`) or a folder (`entries`), now and as it is safe."""

    kind: str
    data: bytearray = field(default_factory=bytearray)
    safe_data: bytes = b""
    target: str = ""
    entries: Entries = field(default_factory=dict)
    safe_entries: Entries = field(default_factory=dict)
    history: list[Entries] = field(default_factory=list)  # of the names since they were synced
    mode: int = 0o640


@dataclass(frozen=True)
class Variant:
    """`names`: all, safe, or some (each folder up to a change of its own). `bytes`: all, safe, torn (half of what was
    written since), or zeros (their length without their content)."""

    names: str
    bytes: str
    seed: int = 0


VARIANTS = (
    Variant("all", "all"),
    Variant("safe", "safe"),
    Variant("all", "torn"),
    Variant("all", "zeros"),
    Variant("some", "torn", 1),
    Variant("some", "all", 2),
)


class QuickDisk(Disk):
    """Waits for no disk."""

    def sync(self, path: Path) -> None:
        pass


class CuttingDisk(Disk):
    """Cuts the power before call number `cut` that changes something, 0 being the first; None never. `fail`: raises
    this at that call and every later one instead, as a full or read-only disk does."""

    def __init__(self, root: Path, cut: int | None = None, fail: Callable[[], OSError] | None = None) -> None:
        self.root, self.cut, self.fail = root, cut, fail
        self.calls: list[str] = []
        self.top = _scan(root)

    def _step(self, what: str, *paths: Path) -> None:
        if self.cut is not None and len(self.calls) >= self.cut:
            if self.fail is None:
                raise PowerCut
            self.calls.append(what)
            raise self.fail()
        self.calls.append(f"{what} {' '.join(str(path.relative_to(self.root)) for path in paths)}")

    def make_folder(self, path: Path, mode: int = 0o750) -> None:
        self._step("mkdir", path)
        super().make_folder(path, mode)
        self._put(path, Node("folder", mode=mode))

    def create(self, path: Path, data: bytes, mode: int = 0o640) -> None:
        self._step("create", path)
        super().create(path, data, mode)
        folder = self._find(path.parent)
        node = folder.entries.get(path.name)
        if node is None:
            node = Node("file", mode=mode)
            self._put(path, node)
        node.data[:] = data

    def append(self, path: Path, data: bytes) -> None:
        self._step("append", path)
        super().append(path, data)
        if path.name not in self._find(path.parent).entries:
            self._put(path, Node("file"))
        self._find(path).data.extend(data)

    def truncate(self, path: Path, size: int) -> None:
        self._step("truncate", path)
        super().truncate(path, size)
        del self._find(path).data[size:]

    def sync(self, path: Path) -> None:
        self._step("sync", path)
        node = self._find(path)
        node.safe_data, node.safe_entries, node.history = bytes(node.data), dict(node.entries), []

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", source, target)
        super().rename(source, target)
        node = self._find(source)
        self._change(source.parent, lambda entries: entries.pop(source.name))
        self._put(target, node)

    def link(self, source: Path, target: Path) -> None:
        self._step("link", source, target)
        super().link(source, target)
        self._put(target, self._find(source))

    def symlink(self, target: Path, path: Path) -> None:
        self._step("symlink", path)
        super().symlink(target, path)
        self._put(path, Node("link", target=str(target)))

    def remove(self, path: Path) -> None:
        self._step("unlink", path)
        super().remove(path)
        self._change(path.parent, lambda entries: entries.pop(path.name))

    def remove_folder(self, path: Path) -> None:
        self._step("rmdir", path)
        super().remove_folder(path)
        self._change(path.parent, lambda entries: entries.pop(path.name))

    def _find(self, path: Path) -> Node:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def _put(self, path: Path, node: Node) -> None:
        self._change(path.parent, lambda entries: entries.update({path.name: node}))

    def _change(self, folder: Path, change: Callable[[Entries], object]) -> None:
        node = self._find(folder)
        node.history.append(dict(node.entries))
        change(node.entries)

    # What survives

    def survivor(self, variant: Variant) -> Node:
        """The tree as it lies there after the cut."""
        return _survivor(self.top, variant, random.Random(variant.seed), {})

    def agrees(self) -> bool:
        """Whether the model holds what really lies there: whether everything went through the seam."""
        return _shape(self.top) == _shape(_scan(self.root))


def lay_out(node: Node, path: Path) -> Path:
    """The tree for real, hard links and all."""
    shutil.rmtree(path, ignore_errors=True)
    _lay_out(node, path, {})
    return path


def _lay_out(node: Node, path: Path, made: dict[int, Path]) -> None:
    if node.kind == "link":
        path.symlink_to(node.target)
    elif node.kind == "folder":
        path.mkdir()
        for name, child in node.entries.items():
            _lay_out(child, path / name, made)
    elif id(node) in made:
        os.link(made[id(node)], path)
    else:
        path.write_bytes(node.data)
        path.chmod(node.mode)
        made[id(node)] = path


def _survivor(node: Node, variant: Variant, chooser: random.Random, seen: dict[int, Node]) -> Node:
    if node.kind == "link":
        return node
    if id(node) not in seen:
        entries = _names(node, variant.names, chooser)
        seen[id(node)] = Node(
            node.kind,
            bytearray(_bytes(node, variant.bytes)),
            entries={name: _survivor(child, variant, chooser, seen) for name, child in sorted(entries.items())},
            mode=node.mode,
        )
    return seen[id(node)]


def _bytes(node: Node, how: str) -> bytes:
    now, safe = bytes(node.data), node.safe_data
    if now == safe or how == "all":
        return now
    common = next(
        (at for at, (one, other) in enumerate(zip(now, safe, strict=False)) if one != other), min(len(now), len(safe))
    )
    if how == "safe":
        return safe
    if how == "torn":
        return now[: common + (len(now) - common) // 2]
    return now[:common] + bytes(len(now) - common)


def _names(node: Node, how: str, chooser: random.Random) -> Entries:
    if how == "all" or not node.history:
        return node.entries
    if how == "safe":
        return node.safe_entries
    return chooser.choice([*node.history, node.entries])


def _scan(path: Path, seen: dict[int, Node] | None = None) -> Node:
    """What lies there, as safe."""
    seen = {} if seen is None else seen
    if path.is_symlink():
        return Node("link", target=str(path.readlink()))
    if path.is_file():
        about = path.stat()
        if about.st_ino not in seen:
            data = path.read_bytes()
            seen[about.st_ino] = Node("file", bytearray(data), data, mode=about.st_mode & 0o777)
        return seen[about.st_ino]
    entries = {child.name: _scan(child, seen) for child in sorted(path.iterdir())}
    return Node("folder", entries=entries, safe_entries=dict(entries))


def _shape(node: Node) -> Hashable:
    if node.kind == "folder":
        return tuple((name, _shape(child)) for name, child in sorted(node.entries.items()))
    return (node.kind, bytes(node.data), node.target)


def all_survivors(run: Callable[[int | None], CuttingDisk], path: Path) -> Iterator[Path]:
    """What lies on the disk, laid out at `path`, after a cut before each call of `run`, in every variant; once where
    several cuts leave the same."""
    calls = len(run(None).calls)
    known: set[Hashable] = set()
    for cut in range(calls):
        disk = run(cut)
        assert len(disk.calls) == cut
        for variant in VARIANTS:
            tree = disk.survivor(variant)
            if _shape(tree) not in known:
                known.add(_shape(tree))
                yield lay_out(tree, path)
