"""`edgekit completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from edgekit.cli.command import NameType
from edgekit.cli.command import command as make_command
from edgekit.cli.output import Output
from edgekit.errors import UnknownNameError

SHELLS = ("bash", "zsh", "fish")


@make_command(
    """
    edgekit completion bash > ~/.local/share/bash-completion/completions/edgekit
    edgekit completion zsh  > "${fpath[1]}/_edgekit"
    edgekit completion fish > ~/.config/fish/completions/edgekit.fish
    """,
    name="completion",
)
@click.argument("shell", type=NameType("shell", lambda: SHELLS))
@click.pass_context
def command(context: click.Context, out: Output, shell: str) -> None:
    """Print the script that teaches SHELL (bash, zsh or fish) to complete edgekit's commands and options."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UnknownNameError("shell", shell, SHELLS)
    script = kind(context.find_root().command, {}, "edgekit", "_EDGEKIT_COMPLETE").source()
    out.emit({"shell": shell, "script": script})
    out.line(script)
