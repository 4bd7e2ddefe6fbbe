"""Files that hold one token: a caller's, a node's, or that of somebody who asks a fleet.

Apart from the nodes, so that a machine which has only the fleet's extras can read one.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import UsageError


def read_token(path: Path) -> str:
    """The one word of a token file. Raises UsageError where it is missing, empty or no text."""
    try:
        lines = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise UsageError(f"cannot read the token file {path}: {error.strerror}", hint="check its path") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the token file {path} is not plain ASCII text", hint="openssl rand -hex 32 > token"
        ) from error
    if len(lines) != 1:
        raise UsageError(
            f"the token file {path} holds {len(lines)} words, allowed one", hint="openssl rand -hex 32 > token"
        )
    return lines[0]
