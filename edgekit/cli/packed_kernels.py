"""The compiled kernels of a bundle as a table, for `edgekit inspect` and `edgekit kernels pack`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli.output import Cell, Column, Table
from edgekit.cli.wording import number_text

if TYPE_CHECKING:
    from edgekit.runtimes.cubins.table import CubinTable


def kernel_table(table: CubinTable) -> Table:
    columns = (
        Column("kernel", style="cyan"),
        Column("arch"),
        Column("types"),
        Column("constants"),
        Column("warps", number=True),
        Column("registers", number=True),
        Column("spilled B", number=True),
        Column("shared kB", number=True),
        Column("sha256"),
    )
    rows = [
        (
            one.kernel if one.entry.startswith(one.kernel.split("-")[-1]) else f"{one.kernel} ({one.entry})",
            one.arch,
            "+".join(dict.fromkeys(argument.type[1:] for argument in one.arguments if argument.type[0] == "*")),
            " ".join(f"{name.removeprefix('BLOCK_')}={value}" for name, value in one.constants.items()),
            str(one.warps),
            str(one.registers),
            Cell(str(one.spilled_bytes), "yellow" if one.spilled_bytes else ""),
            number_text(one.shared_bytes / 1024),
            one.sha256[:12],
        )
        for one in table.kernels
    ]
    return Table(columns, rows, f"Compiled kernels ({table.compiler})")
