"""Namespaces for what listens where it should not: nothing inside is reached from outside, nothing outlives it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOOPBACK = 'ip link set lo up && exec "$@"'


def isolated(command: Sequence[str]) -> list[str]:
    """`command` in a network and a process namespace of its own, with loopback; what it leaves running dies with it."""
    return [*_UNSHARE, "sh", "-c", _LOOPBACK, "sh", *command]


def why_not() -> str | None:
    """Why nothing can be isolated here; None where it can."""
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found (Debian: util-linux, iproute2)"
    done = subprocess.run(isolated(["true"]), capture_output=True, text=True, timeout=30)
    return None if done.returncode == 0 else f"namespaces are not allowed here: {done.stderr.strip()}"


def run_isolated(command: Sequence[str], timeout_s: float, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, stdout, stderr. Raises subprocess.TimeoutExpired, after everything inside was ended."""
    with subprocess.Popen(
        isolated(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err
