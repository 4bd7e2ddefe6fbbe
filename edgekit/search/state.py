"""What a search knows already, on disk: each measurement as soon as it is made, so that an interruption costs one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger("edgekit")

Json = TypeVar("Json", bound=Any)


class State:
    """A JSON file `path`, written whole and moved into place; one that cannot be read, or one of whose values `reads`
    refuses with a ValueError, is begun anew."""

    def __init__(self, path: Path, *, fresh: bool = False, reads: Callable[[Any], object] | None = None) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if fresh or not path.is_file():
            return
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(loaded, dict):
                raise ValueError("no object")
            if reads is not None:
                for value in loaded.values():
                    reads(value)
            self._known = loaded
        except (OSError, ValueError) as error:
            logger.warning("the unfinished search in %s cannot be read (%s): begun anew", path, error)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Any:
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        self._known[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Beside it and renamed: whoever is killed in between leaves the last whole file.
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(self._known), encoding="utf-8")
        beside.replace(self.path)

    def remember(self, key: str, compute: Callable[[], Json]) -> Json:
        """What `compute` gave when it was first asked for `key`."""
        if key not in self._known:
            self.put(key, compute())
        found: Json = self._known[key]
        return found

    def under(self, prefix: str) -> list[Any]:
        """The values of the keys that begin so, in the order in which they came."""
        return [value for key, value in self._known.items() if key.startswith(prefix)]
