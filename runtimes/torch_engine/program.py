"""A torch.export program from a file, without unpickling anything and without running a name that the file chooses.

`torch.export.load` (2.13) reads weights as raw bytes. But it unpickles what the archive marks as pickled, and example
inputs without restriction once its restricted reader has refused them; it hands the text of symbolic sizes to sympy,
compiles guards as Python, and takes any attribute of torch as an operator. So the archive is read first: only known
members, no pickles, no guards, sizes that are arithmetic, operators of aten, prims and our own.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import SessionError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+")

OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|edgekit)\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+"
    r"|torch\.sym_(int|float|max|min|not|ite|sqrt|sum)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
READS_FILES = "torch.ops.aten.from_file."
# What an expression such as 50*Symbol('s40', positive=True, integer=True) is made of.
WORDS = (
    "Symbol", "positive", "integer", "nonnegative", "True", "False", "Integer", "Rational", "Add", "Mul", "Pow", "Max",
    "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "ceiling", "floor", "oo", "int_oo",
)  # fmt: skip
ARITHMETIC = re.compile(rf"'[suz]\d+'|\b[suz]\d+\b|\b(?:{'|'.join(WORDS)})\b|\b\d+\b|[-+*/(),=<>\s]")
MOST_MEMBERS = 100_000
MOST_JSON_BYTES = 256 << 20


def load_program(path: Path) -> ExportedProgram:
    """Raises SessionError for a file that is no program, is damaged, or holds what could run code."""
    check_program(path)
    import torch

    try:
        program: ExportedProgram = torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its archive, JSON and schema layers raise
        raise SessionError(
            f"torch refuses {path.name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            hint="the file is damaged, or was made by another version of torch",
        ) from error
    return program


def check_program(path: Path) -> None:
    """Reads the archive without torch. Raises SessionError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = _member_names(path, members)
            for name, member in names.items():
                _check_member(path, name, member)
            for name in CONFIGS:
                _check_payloads(path, _json(path, archive, names, name))
            _check_graph(path, _json(path, archive, names, MODEL))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError) as error:
        raise _refused(path, f"cannot be read ({error})") from error


def _member_names(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """By name without the folder that torch puts above them."""
    if not members or len(members) > MOST_MEMBERS:
        raise _refused(path, f"has {len(members)} members, allowed 1 to {MOST_MEMBERS}")
    found: dict[str, zipfile.ZipInfo] = {}
    folder = members[0].filename.partition("/")[0]
    for member in members:
        above, slash, name = member.filename.partition("/")
        if not slash or above != folder or name in found:
            raise _refused(path, f"holds {member.filename!r} outside of its folder, or twice")
        found[name] = member
    return found


def _check_member(path: Path, name: str, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise _refused(path, f"compresses {name!r}, which torch never does")
    if name == SAMPLE_INPUTS:
        if member.file_size:
            raise _refused(path, "keeps example inputs as a pickle")
    elif name not in (MODEL, *CONFIGS, *MARKS) and not PAYLOAD.fullmatch(name):
        raise _refused(path, f"holds {name!r}, which no exported program needs")


def _json(path: Path, archive: zipfile.ZipFile, names: dict[str, zipfile.ZipInfo], name: str) -> Any:
    if name not in names:
        raise _refused(path, f"lacks {name}")
    if names[name].file_size > MOST_JSON_BYTES:
        raise _refused(path, f"has {names[name].file_size} bytes of {name}, allowed {MOST_JSON_BYTES}")
    return json.loads(archive.read(names[name]))


def _check_payloads(path: Path, config: Any) -> None:
    for key, value in _pairs(config):
        if key == "use_pickle" and value is not False:
            raise _refused(path, "keeps a weight as a pickle")
        if key == "path_name" and not (isinstance(value, str) and re.fullmatch(r"(weight|tensor)_\d+", value)):
            raise _refused(path, f"keeps a weight in {value!r}")


def _check_graph(path: Path, graph: Any) -> None:
    for key, value in _pairs(graph):
        if key == "target" and isinstance(value, str):
            if not OPERATOR.fullmatch(value) or value.startswith(READS_FILES):
                raise _refused(path, f"calls {value[:100]!r}, allowed operators of aten, prims and edgekit")
        elif key == "expr_str":
            if ARITHMETIC.sub("", str(value)):
                raise _refused(path, f"has the size {str(value)[:100]!r}, allowed arithmetic")
        elif key == "guards_code" and value:
            raise _refused(path, "holds guards, which are Python code")
        elif key in ("as_custom_obj", "custom_obj_name"):
            raise _refused(path, "holds an object that is no tensor")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, of every object in `value`."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _refused(path: Path, what: str) -> SessionError:
    return SessionError(
        f"{path.name} {what}",
        hint="`edgekit export ... --engine torch` writes programs that load without running code; fetch it again",
    )
