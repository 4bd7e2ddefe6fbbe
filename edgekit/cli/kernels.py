"""`edgekit kernels`: list, check, compile, pack, benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import NameType, group
from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.packed_kernels import kernel_table
from edgekit.cli.wording import ms_text, number_text, plain, size_text
from edgekit.errors import MissingExtraError, OutputError, SessionError, UsageError
from edgekit.registry import KERNELS

if TYPE_CHECKING:
    from edgekit.runtimes.kernels.base import Disagreement, Kernel
    from edgekit.runtimes.kernels.compilation import Binary

NAMES = click.argument("names", nargs=-1, type=NameType("kernel", lambda: KERNELS), metavar="[NAME]...")


@group(
    """
    edgekit kernels
    edgekit kernels check
    edgekit kernels compile --arch sm_87,sm_90
    edgekit kernels pack cats.edgekit --arch sm_87 -o cats-kernels.edgekit
    edgekit kernels benchmark
    """,
    name="kernels",
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """List the GPU kernels of the server side, check, compile, pack or time them."""
    if context.invoked_subcommand is None:
        _list(out)


@make_command(
    """
    edgekit kernels list
    """,
    name="list",
)
def list_command(out: Output) -> None:
    """List the kernels: what each computes, and where the idea comes from."""
    _list(out)


@make_command(
    """
    edgekit kernels check
    edgekit kernels check kmeans-assign --json
    """,
    name="check",
)
@NAMES
def check_command(out: Output, names: tuple[str, ...]) -> None:
    """Compare kernels with their references, on the GPU or else in Triton's interpreter.

    NAME: all of them without one. Ends with exit code 12 where one differs.
    """
    with out.working() as progress:
        progress("import torch and Triton", 0, 0)
        where = _where(interpreted=True)
        from edgekit.runtimes.kernels.base import check

        rows: list[dict[str, Any]] = []
        wrong: list[Disagreement] = []
        kernels = _chosen(names)
        for index, kernel in enumerate(kernels):
            progress(f"check {kernel.name}", index, len(kernels))
            found = check(kernel, "cuda" if where == "GPU" else "cpu")
            wrong += found
            examples = len(kernel.examples())
            rows.append({"kernel": kernel.name, "examples": examples, "wrong": [str(one) for one in found]})
    out.emit({"where": where, "kernels": rows})
    columns = (Column("kernel", style="cyan"), Column("examples", number=True), Column("equal to its reference"))
    lines = [
        (
            str(row["kernel"]),
            str(row["examples"]),
            Cell("yes", "green") if not row["wrong"] else Cell("; ".join(map(str, row["wrong"])), "red"),
        )
        for row in rows
    ]
    out.table(Table(columns, lines, f"On the {where}"))
    if wrong:
        raise SessionError(f"{len(wrong)} examples differ from their reference: {wrong[0]}")


@make_command(
    """
    edgekit kernels compile
    edgekit kernels compile --arch sm_87 -o cubins/
    """,
    name="compile",
)
@NAMES
@click.option(
    "--arch", default="sm_80,sm_87,sm_90,sm_100", show_default=True, help="Architectures, separated by commas."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the machine code there.")
def compile_command(out: Output, names: tuple[str, ...], arch: str, output: Path | None) -> None:
    """Compile kernels without a GPU, and read what they take of one: registers, spills, shared memory."""
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists and is not an empty folder", hint="give another --output")
    with out.working() as progress:
        progress("import Triton", 0, 0)
        _where(interpreted=False)
        from edgekit.runtimes.kernels.compilation import compile_kernel

        binaries: list[Binary] = []
        jobs = [(kernel, one.strip()) for kernel in _chosen(names) for one in arch.split(",")]
        for index, (kernel, one) in enumerate(jobs):
            progress(f"compile {kernel.name} for {one}", index, len(jobs))
            binaries += compile_kernel(kernel, one)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for binary in binaries:
            (output / f"{_file_name(binary)}.cubin").write_bytes(binary.cubin)
    out.emit({"binaries": [_plain(binary) for binary in binaries]})
    columns = (
        Column("kernel", style="cyan"),
        Column("entry"),
        Column("arch"),
        Column("types"),
        Column("tiles"),
        Column("warps", number=True),
        Column("registers", number=True),
        Column("spilled B", number=True),
        Column("shared kB", number=True),
        Column("code kB", number=True),
    )
    lines = [
        (
            one.kernel,
            one.entry,
            one.arch,
            one.types,
            _tiles(one),
            str(one.config.warps),
            str(one.registers),
            Cell(str(one.spilled_bytes), "yellow" if one.spilled_bytes else ""),
            Cell(number_text(one.shared_bytes / 1024), "" if one.fits else "red"),
            number_text(len(one.cubin) / 1024),
        )
        for one in binaries
    ]
    out.table(Table(columns, lines, "Compiled"))


@make_command(
    """
    edgekit kernels pack cats.edgekit --arch sm_87 -o cats-kernels.edgekit
    edgekit kernels pack cats.edgekit --arch sm_87 --kernels ragged-decode,kmeans-assign -o out.edgekit --sign KEY
    """,
    name="pack",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--arch", required=True, help="Architectures, separated by commas: sm_87 is a Jetson Orin.")
@click.option(
    "--kernels", default="ragged-decode", show_default=True, metavar="NAMES", help="Which, separated by commas."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The new bundle.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--directory", is_flag=True, help="Write a directory, not an archive.")
@click.option(
    "--sign", "--key", "key", type=click.Path(path_type=Path), metavar="KEY",
    help="Private key to sign the new bundle with.",
)  # fmt: skip
def pack_command(
    out: Output, bundle: Path, arch: str, kernels: str, output: Path, force: bool, directory: bool, key: Path | None
) -> None:
    """Write BUNDLE anew with kernels compiled for GPUs, so that a device runs them without Triton and torch.

    Ragged decoding is compiled for the codecs of the bundle. What BUNDLE is signed with does not hold for the new one:
    sign it by --sign.
    """
    from edgekit.bundle import Bundle, check_folder, check_output

    check_output(output, force=force)
    check_folder(output)
    names = [NameType("kernel", lambda: KERNELS).convert(one.strip(), None, None) for one in kernels.split(",")]
    with out.working() as progress, Bundle.open(bundle) as opened:
        progress("import Triton", 0, 0)
        _where(interpreted=False)
        from edgekit.runtimes.kernels.packing import codecs_of, compile_assets, repack

        architectures = list(dict.fromkeys(one.strip() for one in arch.split(",")))
        assets = compile_assets(_chosen(names), architectures, codecs_of(opened), progress)
        repack(opened, assets, output, sign_key=key, force=force, as_directory=directory)
        was_signed = opened.is_signed
    from edgekit.runtimes.cubins.table import read_table

    with Bundle.open(output) as made:
        table = read_table(made)
        assert table is not None
        out.emit({
            "bundle": str(output), "digest": made.digest, "size_bytes": made.size_bytes, "was_signed": was_signed,
            "signed_by": made.signed_by, "kernels": plain(table),
        })  # fmt: skip
        out.table(kernel_table(table))
        added = sum(file.size_bytes for file in made.manifest.assets if file.file in assets)
    out.line(f"{output}: {len(assets) - 1} files of machine code, {size_text(added)} with their table")


@make_command(
    """
    edgekit kernels benchmark
    edgekit kernels benchmark kmeans-assign --json
    """,
    name="benchmark",
)
@NAMES
def benchmark_command(out: Output, names: tuple[str, ...]) -> None:
    """Time kernels on the GPU that is here, beside their references and the bound of memory and arithmetic."""
    with out.working() as progress:
        progress("import torch and Triton", 0, 0)
        _where(interpreted=False)
        import torch

        from edgekit.runtimes.kernels.timing import measure_gbps, measure_tflops, require_cuda, time_kernel

        device = require_cuda()
        gbps, tflops = measure_gbps(device), measure_tflops(device)
        kernels = _chosen(names)
        timings = []
        for index, kernel in enumerate(kernels):
            progress(f"time {kernel.name}", index, len(kernels))
            timings.append(time_kernel(kernel, device, gbps, tflops))
        name = torch.cuda.get_device_name(device)
    out.emit({"device": name, "gbps": gbps, "tflops": tflops, "kernels": [vars(one) for one in timings]})
    columns = (
        Column("kernel", style="cyan"),
        Column("ms", number=True),
        Column("reference ms", number=True),
        Column("bound ms", number=True),
        Column("of bound", number=True),
        Column("limited by"),
        Column("passes", number=True),
    )
    lines = [
        (
            one.kernel,
            ms_text(one.kernel_ms),
            ms_text(one.reference_ms),
            ms_text(one.bound_ms),
            f"{one.of_bound:.2f}",
            one.limited_by,
            number_text(one.passes),
        )
        for one in timings
    ]
    out.table(Table(columns, lines, f"{name}: {gbps:,.0f} GB/s, {tflops:,.0f} TFLOP/s in bf16"))


for one in (list_command, check_command, compile_command, pack_command, benchmark_command):
    command.add_command(one)


def _list(out: Output) -> None:
    _where(interpreted=False)
    kernels = _chosen(())
    rows = [{"name": one.name, "formula": one.formula, "source": one.source} for one in kernels]
    out.emit({"kernels": rows})
    columns = (Column("kernel", style="cyan"), Column("what it computes"), Column("source"))
    out.table(Table(columns, [(row["name"], row["formula"], row["source"]) for row in rows], "Kernels"))


def _where(*, interpreted: bool) -> str:
    """Where kernels run: on the GPU, or in the interpreter, which has to be asked for before Triton is imported.
    Raises MissingExtraError."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "kernels", "GPU kernels") from error
    if torch.cuda.is_available():
        return "GPU"
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("triton", "kernels", "GPU kernels") from error
    if not interpreted and os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("TRITON_INTERPRET=1 is set, and interpreted kernels are not compiled", hint="unset it")
    return "interpreter"


def _chosen(names: Iterable[str]) -> list[Kernel]:
    return [KERNELS.load(name) for name in names or KERNELS]


def _tiles(binary: Binary) -> str:
    return " ".join(f"{key.removeprefix('BLOCK_')}={value}" for key, value in binary.config.constants.items())


def _file_name(binary: Binary) -> str:
    tiles = "-".join(f"{key.lower()}{value}" for key, value in binary.config.constants.items())
    names = (binary.kernel, binary.entry, binary.types, tiles, f"w{binary.config.warps}", f"s{binary.config.stages}")
    return f"{'-'.join(names)}.{binary.arch}"


def _plain(binary: Binary) -> dict[str, object]:
    return {
        "kernel": binary.kernel,
        "entry": binary.entry,
        "arch": binary.arch,
        "types": binary.types,
        "constants": dict(binary.config.constants),
        "warps": binary.config.warps,
        "stages": binary.config.stages,
        "registers": binary.registers,
        "spilled_bytes": binary.spilled_bytes,
        "shared_bytes": binary.shared_bytes,
        "fits": binary.fits,
        "code_bytes": len(binary.cubin),
    }
