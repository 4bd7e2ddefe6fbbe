"""Kernels compiled ahead of time, into a bundle: the device that opens it needs neither Triton nor torch.

    files = compile_assets(kernels, ["sm_87"], codecs)        machine code and its table, for whoever writes a bundle
    repack(bundle, files, output)                             the same bundle with them

Machine code and table are assets; parts, codecs, plans and their digests stay what they were. The manifest changes, so
the bundle has another digest, and a signature of the old one does not hold for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import triton

from edgekit.bundle import Bundle, Manifest, describe_file, write_bundle
from edgekit.errors import ExportError
from edgekit.runtimes.codecs.base import Codec, open_codec
from edgekit.runtimes.cubins.kernel_set import check_code
from edgekit.runtimes.cubins.table import TABLE, Argument, Cubin, CubinTable, read_table
from edgekit.runtimes.kernels.base import Entry, Kernel
from edgekit.runtimes.kernels.compilation import Binary, compile_entry

logger = logging.getLogger(__name__)

SCRATCH_POINTERS = 2  # Triton 3.9 gives every function two behind its arguments: scratch memory, and that of profiles


def compile_assets(
    kernels: Sequence[Kernel],
    architectures: Sequence[str],
    codecs: Sequence[Codec] = (),
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, bytes]:
    """File name -> content: the machine code, and the table TABLE. A kernel that decodes what `codecs` send is compiled
    for their shapes. Raises UsageError for an unknown architecture, ExportError where the compiler refuses or a kernel
    cannot run without Triton's own launcher."""
    files: dict[str, bytes] = {}
    rows: list[Cubin] = []
    jobs = [(kernel, entry, arch) for kernel in kernels for entry in _entries(kernel, codecs) for arch in architectures]
    for index, (kernel, entry, arch) in enumerate(jobs):
        progress(f"compile {kernel.name} for {arch}", index, len(jobs))
        for binary in compile_entry(kernel.name, entry, arch):
            row = _row(binary)
            check_code(row, binary.cubin, SCRATCH_POINTERS, f"{binary.kernel} for {arch}")
            files[row.file] = binary.cubin
            rows.append(row)
    compiler = f"triton {triton.__version__}"
    table = CubinTable(compiler=compiler, scratch_pointers=SCRATCH_POINTERS, kernels=tuple(rows))
    return {**files, TABLE: table.to_bytes()}


def codecs_of(bundle: Bundle) -> list[Codec]:
    """Every codec that the bundle describes."""
    return [
        open_codec(one, None if one.tables is None else bundle.asset_path(one.tables).read_bytes())
        for one in bundle.manifest.codecs
    ]


def repack(
    bundle: Bundle,
    assets: Mapping[str, bytes],
    output: Path,
    *,
    sign_key: Path | None = None,
    force: bool = False,
    as_directory: bool = False,
) -> Path:
    """`bundle` with `assets` (see `compile_assets`) in place of the kernels that it may hold, at `output`. Signed only
    by `sign_key`. Raises like `write_bundle`."""
    if bundle.is_signed and sign_key is None:
        logger.warning("%s is signed, %s is not: its index is another one; --sign KEY signs it", bundle.path, output)
    table = read_table(bundle)
    stale = {TABLE, *(one.file for one in table.kernels)} if table is not None else set()
    kept = [file for file in bundle.manifest.assets if file.file not in stale]
    fresh = [describe_file(name, content) for name, content in sorted(assets.items())]
    files: dict[str, Path | bytes] = {f"assets/{name}": content for name, content in assets.items()}
    files |= {f"assets/{file.file}": bundle.asset_path(file.file) for file in kept}
    for part in bundle.manifest.parts:
        path = bundle.part_path(part.name)
        files |= {f"parts/{file.file}": path.with_name(file.file) for file in (part, *part.companions)}
    manifest = Manifest.model_validate({**dict(bundle.manifest), "assets": (*kept, *fresh)})
    return write_bundle(
        output,
        manifest,
        files,
        bundle.report,
        bundle.report_html,
        sign_key=sign_key,
        force=force,
        as_directory=as_directory,
    )


def _entries(kernel: Kernel, codecs: Sequence[Codec]) -> Sequence[Entry]:
    if kernel.entries_for is None:
        return kernel.entries
    fitting = {_key(entry): entry for codec in codecs for entry in kernel.entries_for(codec)}
    if not fitting:
        logger.warning("%s is compiled for its example shapes: the bundle has no codec that it decodes", kernel.name)
    return tuple(fitting.values()) or kernel.entries


def _key(entry: Entry) -> tuple[object, ...]:
    """Codecs of one shape need the same code."""
    return *entry.signature.items(), *(tuple(config.constants.items()) for config in entry.configs)


def _row(binary: Binary) -> Cubin:
    if binary.scratch_bytes:
        raise ExportError(
            f"{binary.kernel} for {binary.arch} needs {binary.scratch_bytes} bytes of scratch memory, allowed 0",
            hint="leave this kernel out with --kernels",
        )
    digest = hashlib.sha256(binary.cubin).hexdigest()
    return Cubin(
        kernel=binary.kernel,
        entry=binary.entry,
        symbol=binary.symbol,
        arch=binary.arch,
        arguments=tuple(Argument(name=name, type=kind) for name, kind in binary.arguments),
        constants=dict(binary.config.constants),
        warps=binary.config.warps,
        shared_bytes=binary.shared_bytes,
        registers=binary.registers,
        spilled_bytes=binary.spilled_bytes,
        file=f"{binary.kernel}-{digest[:16]}.{binary.arch}.cubin",
        sha256=digest,
    )
