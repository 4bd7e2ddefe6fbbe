"""`edgekit fleet`: the table of its commands, each in a file of its own."""

from __future__ import annotations

from importlib import import_module

import click

from edgekit.cli.command import NamedGroup, group
from edgekit.cli.output import Output

# name -> (module of edgekit.cli, attribute, what it does)
COMMANDS = {
    "serve": ("fleet_serve", "serve", "Run the service: API and page."),
    "status": ("fleet_status", "status", "Devices, groups and rollouts at a glance."),
    "push": ("fleet_bundles", "push", "Send a bundle to the registry: only what it lacks travels."),
    "bundles": ("fleet_bundles", "bundles", "List bundles, show one, remove one."),
    "invite": ("fleet_devices", "invite", "Make a token to enrol devices with."),
    "devices": ("fleet_devices", "devices", "List devices, show, label, revoke or remove one."),
    "groups": ("fleet_devices", "groups", "List groups; set or remove one."),
    "rollout": ("fleet_rollouts", "rollout", "Take a bundle to a group, step by step, and watch it."),
    "rollouts": ("fleet_rollout_list", "rollouts", "List rollouts, or show one with its steps and guards."),
    "pause": ("fleet_rollouts", "pause", "Ask no further device."),
    "resume": ("fleet_rollouts", "resume", "Go on with a paused rollout."),
    "rollback": ("fleet_rollouts", "rollback", "Give every device back what it ran before."),
    "plan": ("fleet_plan", "plan", "How a device should run its bundle, from what it measured."),
    "insights": ("fleet_insights", "insights", "Devices unlike their peers, or unlike they were."),
    "telemetry": ("fleet_telemetry", "telemetry", "What devices measured over time; export as CSV or Parquet."),
    "simulate": ("fleet_simulate", "simulate", "Many simulated devices that speak the real protocol."),
    "events": ("fleet_events", "events", "The audit log."),
    "backup": ("fleet_backup", "backup", "Write database, bundles and keys into one file."),
    "restore": ("fleet_backup", "restore", "Put a backup in the place of a fleet."),
    "keys": ("fleet_keys", "keys", "The keys that sign what may be installed: look, change, take offline."),
    "people": ("fleet_people", "people", "List people; add or remove one."),
}


class FleetGroup(NamedGroup):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found: click.Command = getattr(import_module(f"edgekit.cli.{module}"), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, _, help) in COMMANDS.items()])


@group(
    """
    edgekit fleet serve
    edgekit fleet push cats.edgekit
    edgekit fleet rollout cats --group pi --canary 5% --guard "agreement>=0.97,p95<=80ms,errors<=0.1%"
    edgekit fleet status
    """,
    name="fleet",
    kind=FleetGroup,
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """Which device runs which bundle, whether it answers right, and what to do next."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
