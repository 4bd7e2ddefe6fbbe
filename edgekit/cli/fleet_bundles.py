"""`edgekit fleet push`, `edgekit fleet bundles`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.fleet_options import reach_options, reached
from edgekit.cli.options import option
from edgekit.cli.output import Column, Output, Table, facts
from edgekit.cli.wording import size_text


@make_command(
    """
    edgekit fleet push cats.edgekit
    edgekit fleet push cats.edgekit --fleet https://fleet:8080 --ca fleet.pem --token-file token
    """,
    name="push",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@reach_options
def push(out: Output, bundle: Path, **settings: Any) -> None:
    """Send a bundle to the registry. What it holds already does not travel; what breaks off goes on."""
    held: list[bool] = []  # first of all: whether all was there

    with reached(settings).open() as client, out.working() as progress:

        def seen(done: int, total: int) -> None:
            held.append(done == total)
            progress("send", done, total)

        view = client.push(bundle, seen)
    how = "which were here already" if held[0] else f"of which {size_text(view.new_bytes)} were new"
    out.emit({"bundle": view.model_dump(mode="json")})
    out.table(
        facts(
            [
                ("bundle", f"{view.name}@sha256:{view.digest}"),
                ("size", f"{size_text(view.size_bytes)}, {how}"),
            ]
        )
    )
    out.remark(f"next: edgekit fleet rollout {view.name}@sha256:{view.digest[:12]} --group GROUP")


@group(
    """
    edgekit fleet bundles
    edgekit fleet bundles show cats
    edgekit fleet bundles remove cats@sha256:0123456789ab
    edgekit fleet bundles prune --keep 5
    """,
    name="bundles",
)
@reach_options
@click.pass_context
def bundles(context: click.Context, /, out: Output, **settings: Any) -> None:
    """List the bundles of the registry, the newest first."""
    context.meta["fleet"] = reached(settings)
    if context.invoked_subcommand is not None:
        return
    with context.meta["fleet"].open() as client:
        page = client.bundles()
    out.emit({"bundles": [one.model_dump(mode="json") for one in page.items]})
    columns = (
        Column("bundle", style="cyan"),
        Column("digest"),
        Column("device"),
        Column("size", number=True),
        Column("running", number=True),
        Column("by"),
    )
    out.table(
        Table(
            columns,
            [
                (one.name, one.digest[:12], one.device, size_text(one.size_bytes), str(one.running), one.pushed_by)
                for one in page.items
            ],
        )
    )


@make_command("edgekit fleet bundles show cats", name="show")
@click.argument("reference")
@click.pass_context
def show(context: click.Context, out: Output, reference: str) -> None:
    """One bundle and its files."""
    with context.meta["fleet"].open() as client:
        view = client.bundle(reference)
    out.emit({"bundle": view.model_dump(mode="json")})
    out.table(facts([("bundle", f"{view.name}@sha256:{view.digest}"), ("device", view.device), ("task", view.task)]))
    out.line()
    columns = (Column("file", style="cyan"), Column("size", number=True), Column("sha256"))
    out.table(Table(columns, [(one.path, size_text(one.size_bytes), one.sha256[:12]) for one in view.files]))


@make_command("edgekit fleet bundles remove cats@sha256:0123456789ab", name="remove")
@click.argument("reference")
@click.pass_context
def remove(context: click.Context, out: Output, reference: str) -> None:
    """Where no device runs or wants it."""
    with context.meta["fleet"].open() as client:
        digest = client.bundle(reference).digest
        client.remove_bundle(digest)
    out.emit({"removed": digest})
    out.line(f"removed {digest[:12]}")


@make_command("edgekit fleet bundles prune --keep 5\nedgekit fleet bundles prune cats --keep 1", name="prune")
@click.argument("name", default="")
@option(
    "--keep",
    heading="Bundles",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="The newest of each name.",
)
@click.pass_context
def prune(context: click.Context, out: Output, name: str, keep: int) -> None:
    """Remove bundles that nothing runs, wants or may go back to; of NAME alone where given."""
    with context.meta["fleet"].open() as client:
        gone = client.prune_bundles(keep, name)
    out.emit({"removed": list(gone)})
    out.line(f"removed {len(gone)} bundle{'s' * (len(gone) != 1)}")


for one in (show, remove, prune):
    bundles.add_command(one)
