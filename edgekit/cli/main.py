"""`edgekit`: the table of commands, and how every one of them ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from edgekit.cli.command import CONTEXT, NamedGroup
from edgekit.cli.failure import ending, exit_code_rows
from edgekit.cli.streams import silence_stdout, stdout_may_be_full
from edgekit.errors import EdgekitError
from edgekit.runtimes.lifeline import end_with_parent

# name -> (module of edgekit.cli, what it does); the module holds the command under the attribute `command`
COMMANDS = {
    "export": ("export", "Take a model to a device: quantize, lower, prove, pack."),
    "search": ("search", "Find the best recipe within limits, and the front of all."),
    "inspect": ("inspect", "Show what a bundle holds and where it comes from."),
    "compare": ("compare", "Put bundles side by side: quality, size, latency, energy, bytes."),
    "plan": ("plan", "Choose how to run a split bundle under a link: front, choice, and why."),
    "run": ("run", "Run a bundle on images, arrays or text."),
    "benchmark": ("benchmark", "Time a bundle on this machine, beside its bare runtime."),
    "evaluate": ("evaluate", "Accuracy, or agreement with the float model, on a folder of data."),
    "link": ("link", "Stand between a device and its node as a slow, uneven link."),
    "simulate": ("simulate", "Replay policies over a bundle's plans on a trace, in virtual time."),
    "serve": ("serve", "Serve bundles to other tiers: Open Inference Protocol over REST and gRPC."),
    "deploy": ("deploy", "Write what KServe or Triton need to serve a bundle, or an image."),
    "trace": ("trace", "Show where the time of a request went, from the device to the cloud."),
    "capacity": ("capacity", "How many replicas carry a load within a latency objective, and what binds."),
    "tune": ("tune", "Find the settings of a server that carry the most requests within a latency objective."),
    "kernels": ("kernels", "List, check, compile, pack, try or time the GPU kernels of the server side."),
    "fleet": ("fleet", "Push bundles, roll them out to devices, watch what they answer."),
    "agent": ("agent", "The daemon on a device that follows a fleet."),
    "devices": ("devices", "List, show or probe devices."),
    "doctor": ("doctor", "What is installed, what can run here, and what adds the rest."),
    "verify": ("verify", "Check a bundle's hashes and its signature."),
    "keygen": ("keygen", "Make a key pair to sign bundles with."),
    "completion": ("completion", "Print a shell's completion script."),
    "exit-codes": ("exit_codes", "List the exit codes and what they mean."),
}

EXAMPLES = """\
edgekit export efficientnet-lite0 --device jetson -o cats.edgekit
edgekit run cats.edgekit --input photo.jpg
edgekit doctor"""


class Edgekit(NamedGroup):
    """Imports a command's module when it is asked for, and turns every failure into its exit code."""

    examples = EXAMPLES

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"edgekit.cli.{COMMANDS[cmd_name][0]}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table: no command is imported to be listed."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, _, meaning in exit_code_rows()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)

        def action() -> object:
            result = super(Edgekit, self).main(
                arguments,
                "edgekit",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            sys.stdout.flush()  # here a full disk can still be told
            return result

        try:
            code = ending(action, arguments)
            with stdout_may_be_full():
                sys.stdout.flush()
        except BrokenPipeError:
            silence_stdout()
            code = EdgekitError.exit_code
        sys.exit(code)


@click.group(cls=Edgekit, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(package_name="edgekit", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Takes a PyTorch model to every edge device, and proves it right."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """Being asked to end (a service manager, a timeout, the end of who started us) cleans up like Ctrl-C: nothing
    half-written stays."""
    signal.signal(signal.SIGTERM, _asked_to_end)
    end_with_parent()
    cli.main()


def _asked_to_end(number: int, frame: FrameType | None) -> None:
    """Once: `timeout` sends it twice, and the second one must not cut the cleaning off."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    raise KeyboardInterrupt
