"""Options that several commands declare alike: under a heading, of files, of a certificate with its key."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit.cli.command import GroupedOption

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FiniteRange(click.FloatRange):
    """A number within bounds: neither nan, which no bound refuses, nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r}, allowed a finite number", param, ctx)
        return number


class CertificateAndKey(click.ParamType):
    """CERT,KEY: the paths of two PEM files."""

    name = "certificate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, Path]:
        if isinstance(value, tuple):
            return value
        chain, comma, key = str(value).partition(",")
        if not (chain and comma and key) or "," in key:
            self.fail(f"{value!r}, allowed CERT,KEY such as cert.pem,key.pem", param, ctx)
        return Path(chain), Path(key)


def option(*names: str, heading: str, **settings: Any) -> Decorator:
    """An option that `--help` lists under `heading`."""
    return click.option(*names, cls=GroupedOption, heading=heading, **settings)


def file_option(*names: str, heading: str, help: str, envvar: str | None = None) -> Decorator:
    """Of a path; whether it is there is told by who reads it."""
    return option(*names, heading=heading, type=click.Path(path_type=Path), metavar="FILE", help=help, envvar=envvar)


def certificate_option(*names: str, heading: str, help: str) -> Decorator:
    return option(*names, heading=heading, type=CertificateAndKey(), metavar="CERT,KEY", help=help)
