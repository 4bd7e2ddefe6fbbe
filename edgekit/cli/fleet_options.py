"""How commands find a fleet: address, token and authority, by option, environment or the file of `fleet login`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.cli.options import file_option, option
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from edgekit.fleet.client import FleetClient

Order = TypeVar("Order")

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Reached:
    """`token_file` None: EDGEKIT_FLEET_TOKEN."""

    url: str
    token_file: Path | None
    ca: Path | None

    def open(self) -> FleetClient:
        """Raises UsageError without a token, MissingExtraError."""
        from edgekit.runtimes.token_file import read_token

        try:
            from edgekit.fleet.client import FleetClient
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "httpx", "agent", "talking to a fleet") from error
        token = os.environ.get("EDGEKIT_FLEET_TOKEN", "") if self.token_file is None else read_token(self.token_file)
        if not token:
            raise UsageError(
                "no token for the fleet",
                hint="--token-file FILE, or EDGEKIT_FLEET_TOKEN; `edgekit fleet serve` tells the first one",
            )
        if not token.isascii() or len(token.split()) != 1:
            raise UsageError(
                "the token in EDGEKIT_FLEET_TOKEN is not one word of plain ASCII", hint="set it as it was told: ekp_..."
            )
        return FleetClient(self.url, token.strip(), self.ca)


def reach_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--fleet, --token-file, --ca."""
    for decorate in (
        file_option(
            "--ca",
            heading="Fleet",
            envvar="EDGEKIT_FLEET_CA",
            help="The authority of its certificate; else EDGEKIT_FLEET_CA, else the system's.",
        ),
        file_option("--token-file", heading="Fleet", help="Your token: one word; else EDGEKIT_FLEET_TOKEN."),
        option(
            "--fleet",
            heading="Fleet",
            envvar="EDGEKIT_FLEET",
            default=DEFAULT_URL,
            show_default=True,
            metavar="URL",
            help="Its address; else EDGEKIT_FLEET.",
        ),
    ):
        command = decorate(command)
    return command


def order_of(kind: type[Order], **fields: Any) -> Order:
    """What was asked for, as it travels. Raises UsageError for values that cannot be."""
    from pydantic import ValidationError

    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise UsageError(
            f"{where}: {first['msg']}", hint="names are small letters, digits, dots, dashes; 63 at most"
        ) from error


def reached(settings: dict[str, Any]) -> Reached:
    """Of the options, which are taken out of `settings`."""
    return Reached(settings.pop("fleet"), settings.pop("token_file"), settings.pop("ca"))
