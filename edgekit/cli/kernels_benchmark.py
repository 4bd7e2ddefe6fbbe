"""`edgekit kernels benchmark`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.cli.command import command as make_command
from edgekit.cli.kernel_choice import NAMES, chosen, need_triton
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, number_text

if TYPE_CHECKING:
    from edgekit.runtimes.kernels.goals import Goal
    from edgekit.runtimes.kernels.timing import Timing


@make_command(
    """
    edgekit kernels benchmark
    edgekit kernels benchmark kmeans-assign --json
    """,
    name="benchmark",
    short="Time them on the GPU that is here.",
)
@NAMES
def benchmark_command(out: Output, names: tuple[str, ...]) -> None:
    """Time kernels on the GPU that is here, beside their references and the bounds of memory and arithmetic.

    NAME: without one all of them, and what they are there to reach beside what torch does in their place.
    """
    with out.working() as progress:
        progress("import torch and Triton", 0, 0)
        need_triton(interpreted=False)
        import torch

        from edgekit.runtimes.kernels.timing import measure_rates, require_cuda, time_kernel

        device = require_cuda()
        rates = measure_rates(device)
        kernels = chosen(names)
        timings = []
        for index, kernel in enumerate(kernels):
            progress(f"time {kernel.name}", index, len(kernels))
            timings.append(time_kernel(kernel, device, rates))
        goals: list[Goal] = []
        if not names:
            from edgekit.runtimes.kernels.goals import measure_goals

            progress("time what torch does in their place", 0, 0)
            goals = list(measure_goals(device, rates))
        name = torch.cuda.get_device_name(device)
    rows = [
        {**vars(one), "bound_ms": one.bound_ms, "of_bound": one.of_bound, "limited_by": one.limited_by}
        for one in timings
    ]
    out.emit({"device": name, **vars(rates), "kernels": rows, "goals": [vars(one) for one in goals]})
    out.table(_timing_table(timings, f"{name}: {rates.gbps:,.0f} GB/s, {rates.bf16_tflops:,.0f} TFLOP/s in bf16"))
    if goals:
        out.line()
        columns = (Column("goal", style="cyan"), Column("reached", number=True), Column("wanted", number=True))
        lines = [
            (one.what, Cell(f"{one.reached:.2f}", "green" if one.reached >= one.wanted else "red"), f"{one.wanted:.2f}")
            for one in goals
        ]
        out.table(Table(columns, lines, "Goals, as ratios"))


def _timing_table(timings: Sequence[Timing], title: str) -> Table:
    columns = (
        Column("kernel", style="cyan"),
        Column("ms", number=True),
        Column("best tiles ms", number=True),
        Column("reference ms", number=True),
        Column("memory ms", number=True),
        Column("arithmetic ms", number=True),
        Column("of bound", number=True),
        Column("limited by"),
        Column("passes", number=True),
    )
    lines = [
        (
            one.kernel,
            ms_text(one.kernel_ms),
            "its own" if one.best_config == one.own_config else f"{ms_text(one.best_ms)} (number {one.best_config})",
            "too large" if one.reference_ms is None else ms_text(one.reference_ms),
            ms_text(one.memory_ms),
            ms_text(one.arithmetic_ms),
            f"{one.of_bound:.2f}",
            one.limited_by,
            number_text(one.passes),
        )
        for one in timings
    ]
    return Table(columns, lines, title)
