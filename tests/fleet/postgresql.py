"""A real PostgreSQL server for tests: Debian's, in a folder of its own, on a Unix socket alone."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

BINARIES = tuple(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}
WAIT_S = 30.0
PREFIX = "edgekit-pg-"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_us() -> None:
    """In the server, before it is one: tests that are killed leave none behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def _sweep() -> None:
    """Folders of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def why_not() -> str:
    """Why no server can be started here; "" where one can."""
    if not BINARIES:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and not any(one.pw_name == "postgres" for one in pwd.getpwall()):
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


class Server:
    """`stop` and `start` it again as often as a test likes; `close` removes it."""

    def __init__(self) -> None:
        # A path of a Unix socket has at most 107 bytes: pytest's own folders may be too deep.
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._binaries = BINARIES[0]
        self._user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self.own(self.folder)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "fleet", "--auth=trust", "--no-sync", "-E", "UTF8")
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._binaries / name), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=60, **self._user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr.decode()

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [*command, *settings], cwd=self.folder, stdout=log, stderr=log, preexec_fn=_end_with_us, **self._user
            )
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", str(self.folder)]
        ends_at = time.monotonic() + WAIT_S
        while subprocess.run(ready, timeout=10).returncode:
            assert self._process.poll() is None and time.monotonic() < ends_at, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Connections are cut, as by a machine that goes down."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if self._process.poll() is None else 0)
            self._process.wait(WAIT_S)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://fleet@/{database}?host={self.folder}"

    def make_database(self, name: str, template: str = "template0") -> str:
        """Its URL. `template`: another one, that it begins as."""
        self._say(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self._say(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def own(self, folder: Path) -> Path:
        """A folder that the server may use."""
        if self._user:
            shutil.chown(folder, **self._user)
        return folder

    def _say(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(host=str(self.folder), user="fleet", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
