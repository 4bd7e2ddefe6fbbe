"""`edgekit kernels pack`"""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.command import NameType
from edgekit.cli.command import command as make_command
from edgekit.cli.kernel_choice import architectures, chosen, need_triton
from edgekit.cli.output import Output
from edgekit.cli.packed_kernels import kernel_table
from edgekit.cli.wording import plain, size_text
from edgekit.errors import SignatureError
from edgekit.registry import KERNELS


@make_command(
    """
    edgekit kernels pack cats.edgekit --arch sm_87 -o cats-kernels.edgekit
    edgekit kernels pack cats.edgekit --arch sm_87 --kernels ragged-dequantize,kmeans-assign \\
        -o out.edgekit --sign KEY
    """,
    name="pack",
    short="Add compiled kernels to a bundle.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--arch", required=True, help="Architectures, separated by commas: sm_87 is a Jetson Orin.")
@click.option(
    "--kernels", default="ragged-dequantize", show_default=True, metavar="NAMES", help="Which, separated by commas."
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

    Kernels that decode features are compiled for the codecs of the bundle. What BUNDLE is signed with does not hold for
    the new one: sign it by --sign.
    """
    from edgekit.bundle import Bundle, check_folder, check_output

    check_output(output, force=force)
    check_folder(output)
    if key is not None and not key.is_file():
        raise SignatureError(f"no key at {key}", hint="`edgekit keygen KEY` makes one")
    names = [NameType("kernel", lambda: KERNELS).convert(one.strip(), None, None) for one in kernels.split(",")]
    with out.working() as progress, Bundle.open(bundle) as opened:
        progress("import Triton", 0, 0)
        need_triton(interpreted=False)
        from edgekit.runtimes.kernels.packing import codecs_of, compile_assets, repack

        assets = compile_assets(chosen(names), architectures(arch), codecs_of(opened), progress)
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
