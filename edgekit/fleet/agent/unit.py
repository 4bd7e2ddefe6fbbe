"""The agent as a systemd service. What it may do is what it needs: its folder, the network, sensors to read."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import OutputError, UsageError
from edgekit.fleet.agent.disk import output_error

NAME = "edgekit-agent.service"
UNITS = Path("/etc/systemd/system")

# Accelerators stay reachable (Jetson's /dev/nvhost*, /dev/nvmap, /dev/nvidia*; a Raspberry Pi's /dev/dri), hence no
# PrivateDevices; runtimes that compile where they run write code into memory, hence no MemoryDenyWriteExecute.
TEMPLATE = """\
[Unit]
Description=edgekit agent: follows a fleet, answers with what was proven here
Wants=network-online.target
After=network-online.target time-sync.target
ConditionPathExists={home}/identity.json
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
SupplementaryGroups={groups}
ExecStart={command}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=30
UMask=0027
Nice=-1
MemoryMax={memory_max}
OOMPolicy=continue
TasksMax=512
{folder}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=
AmbientCapabilities=

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class UnitOptions:
    """Raises UsageError for what cannot stand in a unit."""

    home: Path
    serve: int | None = None
    key: Path | None = None
    user: str = "edgekit"
    memory_max: str = "80%"

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", self.user) is None:
            raise UsageError(f"user {self.user!r:.80}, allowed a name of this system", hint="such as edgekit")
        if re.fullmatch(r"\d+[KMGT]?|\d{1,3}%|infinity", self.memory_max) is None:
            raise UsageError(f"memory {self.memory_max!r:.80}", hint="allowed like 512M, 2G, 80% or infinity")
        for path in (self.home, self.key, Path(sys.executable)):
            if path is not None and re.search(r"[\s\"'\\%$]", str(path)):
                raise UsageError(f"{str(path)!r:.200} holds what systemd reads otherwise", hint="take a plain path")


def unit_text(options: UnitOptions, groups: tuple[str, ...] | None = None) -> str:
    """`groups`: those of accelerators that this system has."""
    command = [sys.executable, "-m", "edgekit", "agent", "run", "--home", str(options.home)]
    command += ["--serve", str(options.serve)] if options.serve is not None else []
    command += ["--key", str(options.key.absolute())] if options.key is not None else []
    found = accelerator_groups() if groups is None else groups
    text = TEMPLATE.format(
        home=options.home,
        user=options.user,
        groups=" ".join(found),
        command=" ".join(command),
        memory_max=options.memory_max,
        folder=_folder(options.home),
        protect_home="read-only" if any(map(_is_at_home, (Path(sys.prefix), options.key))) else "yes",
    )
    return text.replace("SupplementaryGroups=\n", "")


def _is_at_home(path: Path | None) -> bool:
    """What systemd hides: an environment in /home/pi would not be found."""
    return path is not None and path.absolute().parts[1:2] in (("home",), ("root",))


def _folder(home: Path) -> str:
    if home.parent == Path("/var/lib"):  # systemd makes it, and gives it to the user
        return f"StateDirectory={home.name}\nStateDirectoryMode=0750"
    return f"ReadWritePaths={home}"


def accelerator_groups() -> tuple[str, ...]:
    import grp

    known = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in ("video", "render") if name in known)


def install_unit(options: UnitOptions, units: Path = UNITS) -> list[str]:
    """What was done. Raises UsageError without the right to, OutputError where it cannot be written or started."""
    if units == UNITS and os.geteuid() != 0:
        raise UsageError(
            "services are root's to install", hint="sudo edgekit agent install, or --print to see the unit"
        )
    done = _make_user(options) if units == UNITS else []
    path = units / NAME
    try:
        path.write_text(unit_text(options))
    except OSError as error:
        raise output_error(path, error) from error
    done.append(f"wrote {path}")
    if units == UNITS:
        for command in (["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", NAME]):
            _call(command)
            done.append(" ".join(command))
        if not (options.home / "identity.json").exists():
            done.append(
                f"next: sudo -u {options.user} edgekit agent enroll --home {options.home} --fleet URL --token T"
            )
    return done


def _make_user(options: UnitOptions) -> list[str]:
    try:
        pwd.getpwnam(options.user)
        done = []
    except KeyError:
        _call(["useradd", "--system", "--home-dir", str(options.home), "--shell", "/usr/sbin/nologin", options.user])
        done = [f"made the user {options.user}"]
    try:
        options.home.mkdir(parents=True, exist_ok=True, mode=0o750)
        _give(options.home, pwd.getpwnam(options.user).pw_uid)
    except OSError as error:
        raise output_error(options.home, error) from error
    return done


def _give(home: Path, user: int) -> None:
    """The folder and what is in it. By descriptors and never through a link: root does it, and whoever the agent runs
    as could put a link to somebody else's file there meanwhile."""
    for _, folders, files, descriptor in os.fwalk(home.resolve()):
        os.chown(descriptor, user, -1)
        for name in (*folders, *files):
            os.chown(name, user, -1, dir_fd=descriptor, follow_symlinks=False)


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise OutputError(f"{' '.join(command)} failed: {said.strip()[:500]}", hint="--print shows the unit") from error
