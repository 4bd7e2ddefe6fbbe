"""Once more, where a change was undone because it crossed another one."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from edgekit.errors import StoreError

Class = TypeVar("Class")

TRIES = 5
FIRST_WAIT_S = 0.02  # doubled each time, and drawn from below it


def retried(cls: type[Class]) -> type[Class]:
    """Its public methods are called again, where they raise StoreError with `again`: each is one transaction that
    writes, with nothing before it that may not be done twice."""
    for name, found in list(vars(cls).items()):
        if callable(found) and not name.startswith("_") and not isinstance(found, type):
            setattr(cls, name, _again(found))
    return cls


def _again(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        for number in range(TRIES - 1):
            try:
                return method(*arguments, **named)
            except StoreError as error:
                if not error.again:
                    raise
            time.sleep(random.uniform(0, FIRST_WAIT_S * 2**number))
        return method(*arguments, **named)

    return call
