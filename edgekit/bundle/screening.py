"""Refuses pickles: a part that a runtime might unpickle could run any code.

Looked at: file names, the first bytes (PROTO 2 to 5 with an opcode behind it, as every pickler has written since
Python 2.3), and the members of zip files, nested ones too, because torch stores pickles in zips (`data.pkl`).
AOTInductor packages are zips of C++ sources, JSON and a shared library: they pass. A `torch.export` archive that
keeps sample inputs as a pickled `model.pt` does not.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import PurePosixPath
from typing import IO

from edgekit.errors import BundleError

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt"})
MAX_MEMBERS = 10_000
MAX_DEPTH = 3

_OPCODES = frozenset(ord(opcode.code) for opcode in pickletools.opcodes)
_ZIP_MAGIC = b"PK\3\4"


def starts_like_pickle(head: bytes) -> bool:
    """PROTO, its version, then an opcode; a flatbuffer whose root lies at 0x480 has a zero there and is none."""
    return len(head) >= 3 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] in _OPCODES


def refuse_pickle(name: str, content: IO[bytes], *, depth: int = 0) -> None:
    """`content` is seekable, read from its start. Raises BundleError for a pickle, or for a zip that hides one."""
    if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES and depth == 0:
        raise _pickle(name, "is named like a pickle")
    content.seek(0)
    head = content.read(4)
    if starts_like_pickle(head):
        raise _pickle(name, "is a pickle")
    # Any reader of zips looks for their end, so the start alone says nothing.
    if head == _ZIP_MAGIC or zipfile.is_zipfile(content):
        _refuse_in_zip(name, content, depth)


def _refuse_in_zip(name: str, content: IO[bytes], depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _pickle(name, f"nests archives more than {MAX_DEPTH} deep")
    try:
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise _pickle(name, f"is a zip of {len(members)} members, allowed {MAX_MEMBERS}")
            if sum(member.file_size for member in members) > content.seek(0, 2):
                raise _pickle(name, "is a zip whose members overlap")
            for member in members:
                _refuse_member(f"{name}!{member.filename}", archive, member, depth)
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ) as error:
        raise _pickle(name, f"is a zip that cannot be read ({error})") from error


def _refuse_member(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, depth: int) -> None:
    if PurePosixPath(member.filename).suffix.lower() in {".pkl", ".pickle"}:
        raise _pickle(name, "is a pickle")
    if member.compress_type != zipfile.ZIP_STORED:
        raise _pickle(name, "is compressed, so that a pickle in it cannot be ruled out")
    with archive.open(member) as content:
        refuse_pickle(name, content, depth=depth + 1)


def _pickle(name: str, what: str) -> BundleError:
    return BundleError(
        f"{name} {what}; bundles hold no pickles, which could run any code",
        hint="export again to ONNX, LiteRT, ExecuTorch, TensorRT or AOTInductor",
    )
