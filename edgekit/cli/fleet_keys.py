"""`edgekit fleet keys`: on the machine of the service, beside it or before it; `sign` wherever a key is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.fleet_people import day_of
from edgekit.cli.fleet_serve import default_data
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:
    from edgekit.fleet.service.signing import Signing

ROLES = click.Choice(("root", "targets", "snapshot", "timestamp"))
FILE = click.Path(path_type=Path)

algorithm_option = option(
    "--algorithm",
    heading="Keys",
    type=click.Choice(("ed25519", "ecdsa")),
    default="ed25519",
    show_default=True,
    help="ecdsa is on P-256.",
)
key_option = option(
    "--key",
    "keys",
    heading="Keys",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A private key that lies elsewhere; repeatable.",
)
draft_option = option(
    "--draft", heading="Keys", type=FILE, metavar="FILE", help="Where keys lack: write what they have to sign."
)


@group(
    """
    edgekit fleet keys
    edgekit fleet keys export root /media/stick --move
    edgekit fleet keys rotate timestamp --key /media/stick/root-0123456789abcdef.pem
    edgekit fleet keys expiry root --draft root.json
    """,
    name="keys",
)
@option(
    "--data",
    heading="Storage",
    type=FILE,
    metavar="FOLDER",
    help="Of the service.  [default: ~/.local/share/edgekit/fleet]",
)
@option("--db", heading="Storage", metavar="URL", help="Of its database; a SQLite file in the folder without.")
@click.pass_context
def keys(context: click.Context, /, out: Output, data: Path | None, db: str | None) -> None:
    """The keys that sign what may be installed (The Update Framework): list them, change them, take them offline.

    All of them lie in the data folder's trust/keys at first, readable by the service's user alone: whoever gets into
    that machine can sign bundles. With the key of root elsewhere such a one is thrown out by changing the other keys;
    with that of targets elsewhere nothing can be added without its owner. Devices stay as they are in both cases.
    """
    context.meta["place"] = (data or default_data(), db)
    if context.invoked_subcommand is None:
        _show(context, out)


@contextmanager
def _signing(context: click.Context, brought: tuple[Path, ...] = (), *, make: bool = False) -> Iterator[Signing]:
    """Raises MissingExtraError, and like `Database`."""
    try:
        from edgekit.fleet.service.opening import open_signing
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "sqlalchemy", "fleet", "the keys of a fleet") from error
    folder, url = context.meta["place"]
    with open_signing(folder, url, brought, make=make) as signing:
        yield signing


def _show(context: click.Context, out: Output) -> None:
    with _signing(context) as signing:
        found = signing.show()
    out.emit(
        {
            "roles": [
                {"role": one.role, "keys": one.keys, "here": one.here, "version": one.version, "ends_at": one.ends_at}
                for one in found
            ]
        }
    )
    columns = (
        Column("role", style="cyan"),
        Column("key"),
        Column("lies"),
        Column("version", number=True),
        Column("ends"),
    )
    now = time.time()
    rows: list[tuple[str | Cell, ...]] = []
    for one in found:
        ends: str | Cell = day_of(one.ends_at)
        if one.ends_at < now:
            ends = Cell(f"{ends}: over", "red")
        lies = "here" if one.here else "elsewhere"
        rows.append((one.role, ", ".join(key[:16] for key in one.keys), lies, str(one.version), ends))
    out.table(Table(columns, rows))


@make_command("edgekit fleet keys init --root-to /media/stick", name="init")
@algorithm_option
@option(
    "--root-to", heading="Keys", type=FILE, metavar="FOLDER", help="Where the key of root is put, and nowhere else."
)
@click.pass_context
def init(context: click.Context, out: Output, algorithm: Any, root_to: Path | None) -> None:
    """Make the keys before the service starts for the first time, which else does it by itself."""
    with _signing(context, make=True) as signing:
        signing.begin(algorithm, root_to)
    _show(context, out)


@make_command(
    """
    edgekit fleet keys rotate targets
    edgekit fleet keys rotate root --key /media/stick/root-0123456789abcdef.pem
    edgekit fleet keys rotate root --public root.key.pub --draft root.json
    """,
    name="rotate",
)
@click.argument("role", type=ROLES)
@algorithm_option
@option("--public", heading="Keys", type=FILE, metavar="FILE", help="The new key's public half; it was made elsewhere.")
@key_option
@draft_option
@click.pass_context
def rotate(
    context: click.Context,
    out: Output,
    role: Any,
    algorithm: Any,
    public: Path | None,
    keys: tuple[Path, ...],
    draft: Path | None,
) -> None:
    """Give a role another key. Devices follow: the new root is signed by the one before."""
    with _signing(context, keys) as signing:
        from edgekit.fleet.trust.keys import read_public

        published = signing.rotate(role, algorithm, None if public is None else read_public(public), draft)
    _tell(out, role, published, draft)


@make_command(
    """
    edgekit fleet keys expiry
    edgekit fleet keys expiry root --days 365 --key /media/stick/root-0123456789abcdef.pem
    edgekit fleet keys expiry targets --draft targets.json
    """,
    name="expiry",
)
@click.argument("role", type=ROLES, required=False)
@option(
    "--days",
    heading="Keys",
    type=FiniteRange(0.01, 3650),
    metavar="F",
    help="From now on.  [default: root 365, targets 90]",
)
@key_option
@draft_option
@click.pass_context
def expiry(
    context: click.Context, out: Output, role: Any, days: float | None, keys: tuple[Path, ...], draft: Path | None
) -> None:
    """When what is signed ends; with a role, sign it anew: of targets with all bundles that are here."""
    if role is None:
        _show(context, out)
        return
    with _signing(context, keys) as signing:
        published = signing.extend(role, days, draft)
    _tell(out, role, published, draft)


def _tell(out: Output, role: str, published: bool, draft: Path | None) -> None:
    out.emit({"role": role, "published": published, "draft": None if published else str(draft)})
    if published:
        out.line(f"{role} is signed and published")
        return
    assert draft is not None
    from edgekit.fleet.service.signing import draft_paths

    files = [str(path) for path in draft_paths(draft) if path.exists()]
    for file in files:
        out.line(f"{file} waits for signatures")
    signs = ", ".join(f"edgekit fleet keys sign {file} --key KEY" for file in files)
    out.remark(f"next, where the key is: {signs}; here: edgekit fleet keys publish {' '.join(files)}")


@make_command("edgekit fleet keys export root /media/stick --move", name="export")
@click.argument("role", type=ROLES)
@click.argument("folder", type=FILE)
@option("--move", heading="Keys", is_flag=True, help="Keep none here: the role is offline from now on.")
@click.pass_context
def export(context: click.Context, out: Output, role: Any, folder: Path, move: bool) -> None:
    """Copy the private key of a role."""
    with _signing(context) as signing:
        made = signing.export(role, folder, move=move)
    out.emit({"role": role, "files": [str(path) for path in made], "moved": move})
    for path in made:
        out.line(f"{path}{'' if move else ' (and here)'}")


@make_command("edgekit fleet keys sign root.json\nedgekit fleet keys sign root.json --key root.pem", name="sign")
@click.argument("file", type=FILE)
@key_option
def sign(out: Output, file: Path, keys: tuple[Path, ...]) -> None:
    """Show a draft, and put signatures into it. Needs neither the service nor its folder."""
    from edgekit.fleet.service.signing import described, read_draft, sign_draft

    if keys:
        sign_draft(file, keys)
    told = described(read_draft(file))
    out.emit({"draft": told})
    rows: list[tuple[str, str | Cell]] = [
        ("role", told["role"]),
        ("version", str(told["version"])),
        ("ends", day_of(told["ends_at"])),
        ("signed by", ", ".join(key[:16] for key in told["signed_by"]) or "nobody"),
    ]
    rows += [(f"key of {role}", ", ".join(key[:16] for key in held)) for role, held in told.get("keys", {}).items()]
    rows += [("bundle", digest) for digest in told.get("bundles", ())]
    out.table(facts(rows))


@make_command("edgekit fleet keys publish root.json", name="publish")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.pass_context
def publish(context: click.Context, out: Output, files: tuple[Path, ...]) -> None:
    """Let drafts count that are signed."""
    with _signing(context) as signing:
        roles = signing.publish(files)
    out.emit({"published": list(roles)})
    out.line(f"published: {', '.join(roles)}")


for one in (init, rotate, expiry, export, sign, publish):
    keys.add_command(one)
