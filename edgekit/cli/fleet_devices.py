"""`edgekit fleet invite`, `edgekit fleet devices`, `edgekit fleet groups`"""

from __future__ import annotations

from typing import Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.fleet_options import order_of, reach_options, reached
from edgekit.cli.options import FiniteRange, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.errors import UsageError


def labels_of(words: tuple[str, ...]) -> dict[str, str]:
    """`key=value` words. Raises UsageError."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise UsageError(f"label {word!r}, allowed key=value", hint="board=rpi4")
        found[key] = value
    return found


@make_command(
    """
    edgekit fleet invite --label board=rpi4 --label site=plant-3 --uses 20
    """,
    name="invite",
)
@option("--label", "labels", heading="Devices", multiple=True, metavar="K=V", help="That the devices get; repeatable.")
@option(
    "--uses",
    heading="Devices",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many devices.",
)
@option(
    "--hours",
    heading="Devices",
    type=FiniteRange(0.01, 8760),
    default=24.0,
    show_default=True,
    metavar="F",
    help="How long it counts.",
)
@option("--device", heading="Devices", metavar="NAME", help="One that is here already: it gets a new key, and stays.")
@reach_options
def invite(out: Output, labels: tuple[str, ...], uses: int, hours: float, device: str | None, **settings: Any) -> None:
    """Make a token to enrol devices with. It is shown this once."""
    from edgekit.fleet.protocol.people import InvitationOrder

    where = reached(settings)
    order = order_of(InvitationOrder, labels=labels_of(labels), uses=uses, valid_s=3600 * hours, device=device)
    with where.open() as client:
        made = client.invite(order)
    out.emit({"invitation": made.model_dump(mode="json")})
    out.table(facts([("token", Cell(made.token, "yellow")), ("devices", str(uses)), ("counts for", f"{hours:g} h")]))
    again = " --again" if device is not None else ""
    out.remark(f"next, on the device: edgekit agent enroll --fleet {where.url} --token {made.token}{again}")


@group(
    """
    edgekit fleet devices
    edgekit fleet devices --selector board=rpi4,site!=lab
    edgekit fleet devices show pi-7
    edgekit fleet devices label pi-7 board=rpi4 site=plant-3
    """,
    name="devices",
)
@option("--selector", heading="Devices", default="", metavar="TERMS", help="Like board=rpi4,site!=lab.")
@option("--after", heading="Devices", metavar="NAME", help="Read on behind that one.")
@option("--limit", heading="Devices", type=click.IntRange(1, 500), default=100, show_default=True, help="At most.")
@reach_options
@click.pass_context
def devices(
    context: click.Context, /, out: Output, selector: str, after: str | None, limit: int, **settings: Any
) -> None:
    """List devices by name."""
    context.meta["fleet"] = reached(settings)
    if context.invoked_subcommand is not None:
        return
    with context.meta["fleet"].open() as client:
        page = client.devices(selector, after, limit)
    out.emit({"devices": [one.model_dump(mode="json") for one in page.items], "next": page.next})
    columns = (
        Column("device", style="cyan"),
        Column("tier"),
        Column("state"),
        Column("runs"),
        Column("wanted"),
        Column("phase"),
        Column("labels"),
    )
    rows = []
    for one in page.items:
        state = one.standing if one.standing != "active" else "connected" if one.connected else "silent"
        runs, wanted = ((digest or "-")[:12] for digest in (one.slot.running, one.wanted))
        labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
        rows.append((one.name, one.tier, state, runs, wanted, one.slot.phase, labels))
    out.table(Table(columns, rows))
    if page.next is not None:
        out.remark(f"more: --after {page.next}")


@make_command("edgekit fleet devices show pi-7", name="show")
@click.argument("device")
@click.pass_context
def show_device(context: click.Context, out: Output, device: str) -> None:
    """One device: what it is, runs and last saw."""
    with context.meta["fleet"].open() as client:
        one = client.device(device)
    out.emit({"device": one.model_dump(mode="json")})
    slot = one.slot
    rows: list[tuple[str, str | Cell]] = [
        ("device", Cell(one.name, "bold")),
        ("is", f"{one.tier}, {one.system}, edgekit {one.agent}"),
        ("state", f"{one.standing}, {'connected' if one.connected else 'silent'}"),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items())) or "-"),
        ("runs", slot.running or "-"),
        ("wanted", one.wanted or "-"),
        ("phase", slot.phase + (f": {slot.reason}" if slot.reason else "")),
        ("golden", f"{slot.right} of {slot.checked} right" if slot.checked else "-"),
    ]
    out.table(facts(rows))


@make_command("edgekit fleet devices label pi-7 board=rpi4 site=plant-3", name="label")
@click.argument("device")
@click.argument("labels", nargs=-1)
@click.pass_context
def label_device(context: click.Context, out: Output, device: str, labels: tuple[str, ...]) -> None:
    """Its labels are these from now on."""
    from edgekit.fleet.protocol.people import DeviceChange

    with context.meta["fleet"].open() as client:
        one = client.change_device(device, order_of(DeviceChange, labels=labels_of(labels)))
    out.emit({"device": one.model_dump(mode="json")})
    out.line(f"{one.name}: {', '.join(f'{key}={value}' for key, value in sorted(one.labels.items()))}")


@make_command("edgekit fleet devices revoke pi-7", name="revoke")
@click.argument("device")
@click.pass_context
def revoke_device(context: click.Context, out: Output, device: str) -> None:
    """It is heard no more; what runs on it goes on."""
    from edgekit.fleet.protocol.people import DeviceChange

    with context.meta["fleet"].open() as client:
        one = client.change_device(device, DeviceChange(standing="revoked"))
    out.emit({"device": one.model_dump(mode="json")})
    out.line(f"{one.name}: {one.standing}")


@make_command("edgekit fleet devices remove pi-7", name="remove")
@click.argument("device")
@click.pass_context
def remove_device(context: click.Context, out: Output, device: str) -> None:
    """It would have to enrol again."""
    with context.meta["fleet"].open() as client:
        client.remove_device(device)
    out.emit({"removed": device})
    out.line(f"removed {device}")


for one_command in (show_device, label_device, revoke_device, remove_device):
    devices.add_command(one_command)


@group(
    """
    edgekit fleet groups
    edgekit fleet groups set pi board=rpi4 --interval 30
    edgekit fleet groups remove pi
    """,
    name="groups",
)
@reach_options
@click.pass_context
def groups(context: click.Context, /, out: Output, **settings: Any) -> None:
    """List groups, and what their devices run."""
    context.meta["fleet"] = reached(settings)
    if context.invoked_subcommand is not None:
        return
    with context.meta["fleet"].open() as client:
        found = client.groups()
    out.emit({"groups": [one.model_dump(mode="json") for one in found]})
    columns = (
        Column("group", style="cyan"),
        Column("selector"),
        Column("devices", number=True),
        Column("connected", number=True),
        Column("run"),
    )
    rows = []
    for one in found:
        runs = ", ".join(f"{count} x {digest[:12] or 'nothing'}" for digest, count in one.running.items())
        rows.append((one.name, one.selector or "(all)", str(one.devices), str(one.connected), runs))
    out.table(Table(columns, rows))


@make_command("edgekit fleet groups set pi board=rpi4,site!=lab", name="set")
@click.argument("name")
@click.argument("selector", default="")
@option(
    "--interval",
    heading="Devices",
    type=FiniteRange(1, 86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two reports of a device.",
)
@option(
    "--compare-share",
    heading="Devices",
    type=FiniteRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="F",
    help="Of requests that the cloud's full model answers too. Inputs leave the device: ask its owner first.",
)
@click.pass_context
def set_group(
    context: click.Context, out: Output, name: str, selector: str, interval: float, compare_share: float
) -> None:
    """Make or change a group: the devices whose labels fit the selector."""
    from edgekit.fleet.protocol.people import GroupOrder

    order = order_of(GroupOrder, selector=selector, interval_s=interval, compare_share=compare_share)
    with context.meta["fleet"].open() as client:
        one = client.put_group(name, order)
    out.emit({"group": one.model_dump(mode="json")})
    out.line(f"{one.name}: {one.devices} device{'s' * (one.devices != 1)}, {one.connected} connected")


@make_command("edgekit fleet groups remove pi", name="remove")
@click.argument("name")
@click.pass_context
def remove_group(context: click.Context, out: Output, name: str) -> None:
    """Its devices stay, and run what they run."""
    with context.meta["fleet"].open() as client:
        client.remove_group(name)
    out.emit({"removed": name})
    out.line(f"removed {name}")


for one_group in (set_group, remove_group):
    groups.add_command(one_group)
