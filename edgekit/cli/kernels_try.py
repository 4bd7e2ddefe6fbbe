"""`edgekit kernels try`"""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.errors import DeviceError, SessionError


@make_command(
    """
    edgekit kernels try cats-kernels.edgekit
    EDGEKIT_CUDA_DRIVER=/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1 edgekit kernels try cats-kernels.edgekit
    """,
    name="try",
    short="Run a bundle's kernels on this GPU.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
def try_command(out: Output, bundle: Path) -> None:
    """Run the kernels packed in BUNDLE on the GPU of this device, and compare them with numpy.

    Needs CUDA's driver, and neither Triton nor torch. Ends with exit code 12 where a kernel computes something else,
    with 5 where there is no GPU or no kernel for it.
    """
    from edgekit.bundle import Bundle
    from edgekit.runtimes.cubins import KernelSet, RaggedDecoder, open_gpu
    from edgekit.runtimes.cubins.checked import ALLOWED, self_check, transform_codecs

    errors: dict[str, float] = {}
    with Bundle.open(bundle) as opened, open_gpu() as gpu:
        kernels = KernelSet(opened, gpu)
        codecs = transform_codecs(opened)
        if not codecs:
            raise DeviceError(f"{bundle} has no transform codec", hint="there is nothing here that a kernel decodes")
        for name, codec in codecs.items():
            errors[name] = self_check(RaggedDecoder(kernels, codec))
    out.emit({"device": gpu.name, "arch": gpu.arch, "code_for": kernels.arch, "allowed": ALLOWED, "errors": errors})
    wrong = [name for name, error in errors.items() if not error <= ALLOWED]
    columns = (Column("codec", style="cyan"), Column("code for"), Column("error"), Column("as numpy decodes it"))
    lines = [
        (name, kernels.arch, f"{error:.2g}", Cell("no", "red") if name in wrong else Cell("yes", "green"))
        for name, error in errors.items()
    ]
    out.table(Table(columns, lines, f"On {gpu.name} ({gpu.arch})"))
    if wrong:
        raise SessionError(
            f"the packed kernel for {wrong[0]} errs by {errors[wrong[0]]:.3g} of the largest value, "
            f"allowed {ALLOWED:.3g}",
            hint="pack the kernels again, and see that the driver fits the GPU",
        )
