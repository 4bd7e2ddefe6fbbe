"""What a cubin says of itself: architecture, functions, parameters.

An ELF file of CUDA's machine, 64 bits, little-endian; read from the header and, for each function, from its section
`.nv.info.NAME`: a list of attributes (format, code, and for format 4 a length with as many bytes). The tests check it
against CUDA's own cuobjdump.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.errors import BundleError

MACHINE = 190  # EM_CUDA
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_FUNCTION_INFO = ".nv.info."
_SIZED = 4  # an attribute's format: a length of two bytes, then the value
_PARAMETER, _THREADS = 0x17, 0x10  # EIATTR_KPARAM_INFO, EIATTR_REQNTID


@dataclass(frozen=True)
class Parameters:
    """`sizes` in bytes, in the order of a launch; `threads` of a program, None where the code takes any number."""

    sizes: tuple[int, ...]
    threads: int | None


@dataclass(frozen=True)
class MachineCode:
    """`arch`: such as sm_87. `functions`: by the name that the driver finds them under."""

    arch: str
    functions: dict[str, Parameters]


def read_cubin(cubin: bytes, origin: str) -> MachineCode:
    """Raises BundleError for bytes that are no whole cubin; `origin` names them."""
    try:
        return _read(cubin)
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise BundleError(
            f"{origin} is no whole cubin: {error}", hint="pack the kernels again, or fetch the bundle again"
        ) from error


def _read(cubin: bytes) -> MachineCode:
    (ident, _, machine, _, _, _, sections_at, flags, _, _, _, entry_size, count, names_index) = _HEADER.unpack_from(
        cubin
    )
    if ident[:4] != b"\x7fELF":
        raise ValueError("it does not begin as an ELF file")
    if ident[4:6] != b"\2\1" or machine != MACHINE or entry_size != _SECTION.size:
        raise ValueError(f"machine {machine} and class {ident[4]}, allowed {MACHINE} (CUDA) and 2 (64 bits)")
    # From version 8 of this ABI the architecture lies in the second byte of the flags, before that in the first.
    number = (flags >> 8 if ident[8] >= 8 else flags) & 0xFF
    headers = [_SECTION.unpack_from(cubin, sections_at + index * _SECTION.size) for index in range(count)]
    names = _content(cubin, headers[names_index])
    functions = {}
    for header in headers:
        name = names[header[0] : names.index(b"\0", header[0])].decode("ascii")
        if name.startswith(_FUNCTION_INFO):
            functions[name.removeprefix(_FUNCTION_INFO)] = _parameters(_content(cubin, header))
        elif name.startswith(".text."):
            _content(cubin, header)
    if not functions:
        raise ValueError("it holds no function")
    return MachineCode(f"sm_{number}", functions)


def _content(cubin: bytes, header: tuple[int, ...]) -> bytes:
    offset, size = header[4], header[5]
    if offset + size > len(cubin):
        raise ValueError(f"a section ends at byte {offset + size} of {len(cubin)}")
    return cubin[offset : offset + size]


def _parameters(info: bytes) -> Parameters:
    found: dict[int, int] = {}
    threads = None
    for code, value in _attributes(info):
        if code == _PARAMETER:
            _, ordinal, _, packed = struct.unpack("<IHHI", value)
            found[ordinal] = packed >> 18
        elif code == _THREADS:
            x, y, z = struct.unpack("<III", value)
            threads = x * y * z
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"parameters {sorted(found)} of {len(found)}")
    return Parameters(tuple(found[ordinal] for ordinal in range(len(found))), threads)


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(info):
        form, code, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _SIZED:
            if at + length > len(info):
                raise ValueError(f"attribute {code:#x} ends past its section")
            yield code, info[at : at + length]
            at += length
