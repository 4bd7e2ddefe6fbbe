"""`edgekit kernels`: list, check, compile, pack, try, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.kernel_choice import NAMES, architectures, chosen, need_triton
from edgekit.cli.kernels_benchmark import benchmark_command
from edgekit.cli.kernels_pack import pack_command
from edgekit.cli.kernels_try import try_command
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import number_text
from edgekit.errors import OutputError, SessionError

if TYPE_CHECKING:
    from edgekit.runtimes.kernels.base import Disagreement
    from edgekit.runtimes.kernels.compilation import Binary


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
    """List the GPU kernels of the server side, check, compile, pack, try or time them."""
    if context.invoked_subcommand is None:
        _list(out)


@make_command(
    """
    edgekit kernels list
    """,
    name="list",
    short="List them: what each computes, and its source.",
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
    short="Compare them with their references.",
)
@NAMES
def check_command(out: Output, names: tuple[str, ...]) -> None:
    """Compare kernels with their references, on the GPU or else in Triton's interpreter.

    NAME: all of them without one. Ends with exit code 12 where one differs.
    """
    with out.working() as progress:
        progress("import torch and Triton", 0, 0)
        where = need_triton(interpreted=True)
        from edgekit.runtimes.kernels.base import check

        rows: list[dict[str, Any]] = []
        wrong: list[Disagreement] = []
        kernels = chosen(names)
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
    short="Compile them without a GPU: registers, spills.",
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
        need_triton(interpreted=False)
        from edgekit.runtimes.kernels.compilation import compile_kernel

        binaries: list[Binary] = []
        wanted = architectures(arch)
        jobs = [(kernel, one) for kernel in chosen(names) for one in wanted]
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


for one in (list_command, check_command, compile_command, pack_command, try_command, benchmark_command):
    command.add_command(one)


def _list(out: Output) -> None:
    need_triton(interpreted=False)
    kernels = chosen(())
    rows = [{"name": one.name, "formula": one.formula, "source": one.source} for one in kernels]
    out.emit({"kernels": rows})
    columns = (Column("kernel", style="cyan"), Column("what it computes"), Column("source"))
    out.table(Table(columns, [(row["name"], row["formula"], row["source"]) for row in rows], "Kernels"))


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
