"""`edgekit keygen`"""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.output import Output


@make_command(
    """
    edgekit keygen release.key
    edgekit export minilm --device raspberry-pi --sign release.key
    edgekit verify minilm-raspberry-pi-5.edgekit --key release.key.pub
    """,
    name="keygen",
)
@click.argument("path", type=click.Path(path_type=Path))
def command(out: Output, path: Path) -> None:
    """Make an ed25519 key pair: the private key at PATH, to keep, and PATH.pub, to give to devices."""
    from edgekit.bundle import generate_key

    public = generate_key(path)
    out.emit({"private_key": str(path), "public_key": str(public)})
    out.line(f"private key: {path} (keep it: export --sign {path})")
    out.line(f"public key:  {public} (give it away: verify --key {public})")
