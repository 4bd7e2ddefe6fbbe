"""`edgekit verify`"""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Output, facts
from edgekit.cli.wording import plain, size_text


@make_command(
    """
    edgekit verify cats.edgekit
    edgekit verify cats.edgekit --key release.key.pub && scp cats.edgekit pi@kitchen:
    """,
    name="verify",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-k", "--key", type=click.Path(path_type=Path), metavar="FILE", help="Public key that must have signed it."
)
def command(out: Output, bundle: Path, key: Path | None) -> None:
    """Check the hashes and sizes of every file in BUNDLE and, with --key, who signed it.

    Exit code 0 only where all of it holds; 9 for anything else.
    """
    from edgekit.bundle import verify

    result = verify(bundle, key)
    out.emit({**plain(result), "path": str(result.path), "ok": True})
    signature = _signature(result.signed_by, result.key_checked)
    out.table(
        facts(
            [
                ("bundle", str(result.path)),
                ("model", result.name),
                ("digest", result.digest),
                ("content", f"{result.files} files, {size_text(result.size_bytes)}: all as the index says"),
                ("signature", signature),
                ("verdict", Cell("good", "green")),
            ]
        )
    )


def _signature(signed_by: str | None, key_checked: bool) -> Cell:
    if signed_by is None:
        return Cell("none")
    if key_checked:
        return Cell(f"by the key given ({signed_by[:16]}...)", "green")
    return Cell(f"claims the key {signed_by[:16]}..., not checked: give --key", "yellow")
