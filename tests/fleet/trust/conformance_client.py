"""The agent's client of The Update Framework, as tuf-conformance drives it (github.com/theupdateframework).

    pip install tuf==7.* pytest securesystemslib[crypto]; apt install faketime
    git clone https://github.com/theupdateframework/tuf-conformance && cd tuf-conformance
    pytest tuf_conformance --entrypoint "python EDGEKIT/tests/fleet/trust/conformance_client.py"

The suite's `init` gives the root that an agent gets when it enrols; `refresh` and `download` go through `Trusted`, over
plain HTTP instead of the agent's connection. Not a test by itself.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from edgekit.errors import AbsentError, EdgekitError, UnreachableError
from edgekit.fleet.agent.trusted import Get, Trusted

INITIAL = Path("initial") / "root.json"  # not beside the metadata, where the suite looks at every file


def getter(url: str) -> Get:
    def get(name: str) -> Iterator[bytes]:
        try:
            with httpx.stream("GET", f"{url.rstrip('/')}/{name}", trust_env=False) as answer:
                if answer.status_code in (403, 404):
                    raise AbsentError(f"no {name}", hint="none")
                if answer.status_code >= 400:
                    raise UnreachableError(f"status {answer.status_code}", hint="none")
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise UnreachableError(str(error), hint="none") from error

    return get


def download(trusted: Trusted, names: list[str], url: str, folder: Path) -> None:
    """Artifacts by hash, as consistent snapshots have them; one that is here already does not come again."""
    updater = trusted.refresh()
    prefixed = updater._trusted_set.root.consistent_snapshot
    for name in names:
        target = trusted.target(name, updater)
        kept = str(folder / name.replace("/", "%2F"))
        if updater.find_cached_target(target, kept) is None:
            place = target.get_prefixed_paths()[0] if prefixed else name
            data = b"".join(getter(url)(place))
            target.verify_length_and_hashes(data)
            Path(kept).write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    asked = parser.parse_args()
    folder: Path = asked.metadata_dir
    if asked.command == "init":
        (folder / INITIAL).parent.mkdir()
        shutil.copyfile(asked.root, folder / INITIAL)
        shutil.copyfile(asked.root, folder / "root.json")
        return 0
    trusted = Trusted(folder, (folder / INITIAL).read_bytes(), getter(asked.metadata_url))
    try:
        if asked.command == "refresh":
            trusted.refresh()
        else:
            download(trusted, asked.target_name, asked.target_base_url, asked.target_dir)
    except EdgekitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
