from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgekit.cli.options import certificate_option, file_option


@click.command()
@certificate_option("--tls", heading="Security", help="PEM files.")
@file_option("--key", heading="Security", help="A key.")
def show(tls: tuple[Path, Path] | None, key: Path | None) -> None:
    click.echo(f"{tls} {key}")


def test_a_certificate_and_its_key_are_two_paths() -> None:
    given = CliRunner().invoke(show, ["--tls", "a/cert.pem,key.pem", "--key", "k.pub"])
    assert given.output == f"{(Path('a/cert.pem'), Path('key.pem'))} {Path('k.pub')}\n"
    assert CliRunner().invoke(show, []).output == "None None\n"


@pytest.mark.parametrize("text", ["cert.pem", ",key.pem", "cert.pem,", "a,b,c"])
def test_what_is_no_pair_is_refused_and_the_form_is_shown(text: str) -> None:
    result = CliRunner().invoke(show, ["--tls", text])
    assert result.exit_code == 2 and "CERT,KEY" in result.output
