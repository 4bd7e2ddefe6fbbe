"""The table of the compiled kernels in a bundle: what each file holds, and what a launch must know of it.

An asset of its own, `kernels.json`, beside the machine code: the manifest and its digests cover it as they cover every
asset, and an edgekit that knows nothing of kernels opens the bundle as before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgekit.bundle.layout import canonical_json, parse
from edgekit.bundle.manifest import Digest, FileName
from edgekit.bundle.strict import Strict
from edgekit.errors import BundleError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

TABLE = "kernels.json"
MAX_TABLE_BYTES = 8 << 20
# Bytes of a value of Triton's types; a pointer has the `*` of its type before it.
SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "fp16": 2, "bf16": 2, "i32": 4, "u32": 4, "fp32": 4, "i64": 8}
POINTER_BYTES = 8
_TYPE = re.compile(r"\*?(?:" + "|".join(SIZES) + ")")

Architecture = Annotated[str, Field(pattern=r"^sm_[1-9][0-9]{1,2}$")]


class Argument(Strict):
    """`type`: Triton's, such as `*bf16` for a tensor or `i32` for a number."""

    name: str
    type: Annotated[str, Field(pattern=f"^(?:{_TYPE.pattern})$")]

    @property
    def size_bytes(self) -> int:
        return POINTER_BYTES if self.type[0] == "*" else SIZES[self.type]


class Cubin(Strict):
    """One function, compiled for one architecture with its `constants`.

    `kernel` is edgekit's name, `entry` that of the function, `symbol` what the driver finds it under. `arguments`: in
    the order of a launch. `shared_bytes`: of a program, given at the launch. `spilled_bytes`: of a thread's registers.
    """

    kernel: str
    entry: str
    symbol: str
    arch: Architecture
    arguments: tuple[Argument, ...] = Field(min_length=1, max_length=256)
    constants: dict[str, int]
    warps: int = Field(ge=1, le=32)
    shared_bytes: int = Field(ge=0)
    registers: int = Field(ge=1, le=255)
    spilled_bytes: int = Field(ge=0)
    file: FileName
    sha256: Digest


class CubinTable(Strict):
    """`scratch_pointers`: how many null pointers a launch passes behind the arguments (Triton's scratch memory, which
    no packed kernel uses). `kernels`: of one kernel and architecture, what a launch most likely wants comes first."""

    schema_version: Literal[1] = 1
    compiler: str
    scratch_pointers: int = Field(ge=0, le=8)
    kernels: tuple[Cubin, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> CubinTable:
        for one in self.kernels:
            names = [argument.name for argument in one.arguments]
            if len(set(names)) != len(names):
                raise ValueError(f"arguments of {one.kernel} repeat: {names}")
        return self

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.arch for one in self.kernels))

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


def read_table(bundle: Bundle) -> CubinTable | None:
    """None for a bundle without compiled kernels. Raises BundleError for a table that does not fit its assets."""
    digests = {file.file: file for file in bundle.manifest.assets}
    if TABLE not in digests:
        return None
    if digests[TABLE].size_bytes > MAX_TABLE_BYTES:
        raise BundleError(f"{TABLE} of {bundle.path} has {digests[TABLE].size_bytes} bytes, allowed {MAX_TABLE_BYTES}")
    table = parse(CubinTable, bundle.asset_path(TABLE).read_bytes(), TABLE, str(bundle.path))
    for one in table.kernels:
        file = digests.get(one.file)
        if file is None or file.sha256 != one.sha256:
            what = "is not among the assets" if file is None else f"has sha256 {file.sha256[:16]}... as an asset"
            raise BundleError(
                f"{TABLE} of {bundle.path} names {one.file} with sha256 {one.sha256[:16]}..., which {what}",
                hint="pack the kernels again: `edgekit kernels pack`",
            )
    return table


def runs_on(arch: str, device: str) -> bool:
    """Whether code for `arch` runs on `device`, both such as sm_87: on the same, and between sm_80 and sm_89 on a later
    one of a desktop or server. Code of and for a Jetson (Tegra: sm_87) is not exchanged with others (CUDA C programming
    guide, binary compatibility), and from sm_90 on Triton compiles for one architecture alone."""
    if arch == device:
        return True
    code, chip = int(arch[3:]), int(device[3:])
    return code // 10 == chip // 10 == 8 and code < chip and 87 not in (code, chip)
