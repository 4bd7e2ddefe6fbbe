"""`edgekit devices`: list, show, probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgekit.cli.command import NameType, group
from edgekit.cli.command import command as make_command
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import plain
from edgekit.devices.device import ALIASES, Device, load_device, profile_names
from edgekit.errors import OutputError


@group(
    """
    edgekit devices
    edgekit devices show jetson
    edgekit devices probe -o this-machine.toml
    edgekit export efficientnet-lite0 --device this-machine.toml
    """,
    name="devices",
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """List the device profiles, show one, or measure this machine into a new one."""
    if context.invoked_subcommand is None:
        _list(out)


@make_command(
    """
    edgekit devices list
    edgekit devices list --json | jq -r '.devices[].name'
    """,
    name="list",
)
def list_command(out: Output) -> None:
    """List the profiles that come with edgekit, and their aliases."""
    _list(out)


@make_command(
    """
    edgekit devices show jetson
    edgekit devices show raspberry-pi-5 --toml > my-board.toml
    """,
    name="show",
    short="Show a device: its units, formats and sources.",
)
@click.argument("name", type=NameType("device", lambda: [*profile_names(), *ALIASES], closed=False))
@click.option("--toml", is_flag=True, help="The profile itself, to start your own from.")
def show_command(out: Output, name: str, toml: bool) -> None:
    """Show the device NAME: a profile, an alias or the path of a TOML file."""
    device = load_device(name)
    out.emit({"device": plain(device)})
    if toml:
        from edgekit.devices.probe import to_toml

        out.line(to_toml(device).rstrip())
    elif not out.json:
        for table in _tables(device):
            out.table(table)
            out.line()


@make_command(
    """
    edgekit devices probe -o this-machine.toml
    edgekit devices probe --json
    """,
    name="probe",
    short="Measure this machine into a profile.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the profile to this TOML file."
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Measure with so many; all cores without it.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def probe_command(out: Output, output: Path | None, threads: int | None, force: bool) -> None:
    """Measure this machine: cores, instruction sets, bandwidth, arithmetic rates, runtimes. Under 30 seconds."""
    from edgekit.devices.probe import probe, to_toml

    if output is not None and output.exists() and not force:
        raise OutputError(f"{output} exists", hint="--force replaces it, -o names another")
    with out.working() as progress:
        device = probe(threads, progress)
    if output is not None:
        try:
            output.write_text(to_toml(device), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {output}: {error.strerror}", hint="choose a writable path") from error
    out.emit({"device": plain(device), "file": str(output) if output else None})
    if not out.json:
        for table in _tables(device):
            out.table(table)
            out.line()
    if output is not None:
        out.line(f"written: {output}; use it with  edgekit export MODEL --device {output}")


for _made in (list_command, show_command, probe_command):
    command.add_command(_made)


def _list(out: Output) -> None:
    devices = [load_device(name) for name in profile_names()]
    out.emit(
        {
            "devices": [
                {
                    "name": device.name,
                    "title": device.title,
                    "arch": device.arch,
                    "memory_bytes": device.memory_bytes,
                    "formats": list(device.formats),
                    "aliases": _aliases(device.name),
                }
                for device in devices
            ],
            "aliases": ALIASES,
        }
    )
    rows = [
        (
            device.name,
            ", ".join(_aliases(device.name)),
            device.title,
            _gib(device.memory_bytes),
            ", ".join(f"{unit.cores}x {unit.name}" for unit in device.units),
            ", ".join(device.formats),
        )
        for device in devices
    ]
    columns = (
        Column("device", style="cyan"),
        Column("alias"),
        Column("machine"),
        Column("memory", number=True),
        Column("units"),
        Column("formats, best first"),
    )
    out.table(Table(columns, rows))
    out.remark("`edgekit devices show NAME` tells more; a TOML file of your own works wherever a name does")


def _aliases(name: str) -> list[str]:
    return [alias for alias, target in ALIASES.items() if target == name]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.0f} GiB"


def _bandwidth(device: Device) -> str:
    """A probe knows no data sheet: what it measured stands in the place of its figure."""
    known = "nominal" if "nominal_bandwidth_gbps" not in device.estimated else "measured by copying, nominal unknown"
    return f"{device.nominal_bandwidth_gbps:g} GB/s {known}"


def _tables(device: Device) -> Sequence[Table]:
    power = ", ".join(f"{state} {watts:g} W" for state, watts in device.power_w.items())
    mode = f" ({device.power_mode})" if device.power_mode else ""
    rows: list[tuple[str, str | Cell]] = [
        ("device", Cell(device.name, "bold")),
        ("machine", f"{device.title}, {device.arch}"),
        ("memory", f"{_gib(device.memory_bytes)}, {_bandwidth(device)}"),
        ("power", f"{power or 'unknown'}{mode}"),
        ("calibrated", "by a probe" if device.efficiency else "no: latency is scaled from a reference machine"),
        ("estimated", ", ".join(device.estimated) or "nothing"),
    ]
    return [facts(rows), _units(device), _formats(device), *_sources(device)]


def _units(device: Device) -> Table:
    columns = (
        Column("unit", style="cyan"),
        Column("cores", number=True),
        Column("GHz", number=True),
        Column("GB/s", number=True),
        Column("peak GFLOP/s (GOP/s for int8)"),
        Column("dispatch us", number=True),
        Column("ISA"),
    )
    rows = [
        (
            unit.name,
            str(unit.cores),
            f"{unit.clock_ghz:g}",
            f"{unit.bandwidth_gbps:g}",
            ", ".join(f"{precision} {peak:,.0f}" for precision, peak in unit.peak_gflops.items()),
            f"{unit.dispatch_us:g}",
            " ".join(unit.isa),
        )
        for unit in device.units
    ]
    return Table(columns, rows, "Units")


def _formats(device: Device) -> Table:
    columns = (Column("format", style="cyan"), Column("unit"), Column("precisions, fastest first"))
    rows = [(name, unit, ", ".join(precisions)) for name, (unit, precisions) in device.formats.items()]
    return Table(columns, rows, "Formats")


def _sources(device: Device) -> list[Table]:
    if not device.sources:
        return []
    columns = (Column("figure", style="cyan"), Column("source"))
    return [Table(columns, list(device.sources.items()), "Sources")]
