"""Memory of one device, shared by the models of this process: the least recently used one that is idle gives way.

A model holds its bytes from its first run until it is evicted; while it runs it is not idle. The bound is on what the
models said they take, so that it holds for a GPU, and in tests for the processor, alike. Nothing here knows torch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgekit.errors import DeviceError, UsageError

logger = logging.getLogger("edgekit")


@dataclass(eq=False)
class Member:
    """One model of a budget. `upload` brings its weights to the device, `evict` takes them off it."""

    name: str
    size_bytes: int
    upload: Callable[[], None] = field(repr=False)
    evict: Callable[[], None] = field(repr=False)
    users: int = 0
    is_resident: bool = False
    used_at: int = 0
    uploads: int = 0


class MemoryBudget:
    """`device` is what errors call it. Safe to use from any thread; one model is used by one thread at a time."""

    def __init__(self, limit_bytes: int, device: str) -> None:
        self.limit_bytes, self.device = limit_bytes, device
        self._members: list[Member] = []
        self._changed = threading.Condition()
        self._clock = 0

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members)

    @property
    def resident_bytes(self) -> int:
        return sum(member.size_bytes for member in self._members if member.is_resident)

    def join(self, member: Member) -> None:
        """Raises DeviceError for a model that would not fit alone."""
        self._check(member.name, member.size_bytes)
        with self._changed:
            self._members.append(member)

    def leave(self, member: Member) -> None:
        """What it holds is free at once; its own weights are the caller's to drop."""
        with self._changed:
            self._members.remove(member)
            member.is_resident = False
            self._changed.notify_all()

    def resize(self, member: Member, size_bytes: int) -> None:
        """After a measurement. Raises DeviceError where it turns out not to fit alone; others give way at the next
        use."""
        self._check(member.name, size_bytes)
        with self._changed:
            member.size_bytes = size_bytes
            self._make_room(0)

    @contextmanager
    def use(self, member: Member) -> Iterator[None]:
        """Its weights are on the device inside. Waits while models that run hold the room."""
        with self._changed:
            while not member.is_resident and not self._make_room(member.size_bytes):
                self._changed.wait()
            is_new, member.is_resident = not member.is_resident, True
            member.users += 1
        try:
            if is_new:
                self._bring(member)
            yield
        finally:
            with self._changed:
                member.users -= 1
                self._clock += 1
                member.used_at = self._clock
                self._changed.notify_all()

    def _bring(self, member: Member) -> None:
        try:
            member.upload()
        except BaseException:
            with self._changed:
                member.is_resident = False
            raise
        member.uploads += 1

    def _make_room(self, size_bytes: int) -> bool:
        """Evicts idle models, the least recently used first, until `size_bytes` are free; False where too many run."""
        idle = sorted((one for one in self._members if one.is_resident and not one.users), key=lambda one: one.used_at)
        held = sum(one.size_bytes for one in idle)
        if self.resident_bytes - held + size_bytes > self.limit_bytes:
            return False
        while self.resident_bytes + size_bytes > self.limit_bytes:
            victim = idle.pop(0)
            logger.info("%s gives way on %s: %d bytes", victim.name, self.device, victim.size_bytes)
            victim.evict()
            victim.is_resident = False
        return True

    def _check(self, name: str, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise DeviceError(
                f"{name} needs {size_bytes:,} bytes on {self.device}, have {self.limit_bytes:,}",
                hint="raise --gpu-memory, take a smaller --precision, or smaller batches",
            )


_BUDGETS: dict[str, MemoryBudget] = {}
_LOCK = threading.Lock()


def join_shared(device: str, limit_bytes: int | None, measure: Callable[[], int], member: Member) -> MemoryBudget:
    """`member` in this process's budget of `device`. The first one that joins sets the bound, `measure()` where it has
    none of its own.

    Raises UsageError where models that are in it were promised another bound, DeviceError like `join`.
    """
    with _LOCK:
        budget = _BUDGETS.get(device)
        if budget is None or not budget.members:
            budget = _BUDGETS[device] = MemoryBudget(measure() if limit_bytes is None else limit_bytes, device)
        if limit_bytes not in (None, budget.limit_bytes):
            raise UsageError(
                f"{limit_bytes:,} bytes on {device}, where this process bounds its models to {budget.limit_bytes:,}",
                hint="give every model of a process the same bound",
            )
        budget.join(member)
        return budget
