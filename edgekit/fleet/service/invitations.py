"""Invitations that still count: listed, and taken back."""

from __future__ import annotations

from sqlalchemy import select

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.people import InvitationView
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Device, Invitation

MOST_SHOWN = 200


@retried
class Invitations:
    def __init__(self, core: Core) -> None:
        self._core = core

    def open(self) -> tuple[InvitationView, ...]:
        """The next to end first."""
        names = select(Invitation, Device.name).outerjoin(Device, Device.id == Invitation.device)
        query = names.where(Invitation.uses_left > 0, Invitation.ends_at > self._core.now())
        with self._core.database.read() as session:
            rows = session.execute(query.order_by(Invitation.ends_at, Invitation.id).limit(MOST_SHOWN))
            return tuple(
                InvitationView(
                    id=row.id, labels=row.labels, uses_left=row.uses_left, ends_at=row.ends_at, device=device
                )
                for row, device in rows
            )

    def withdraw(self, actor: Actor, identifier: str) -> None:
        """Its token counts no more; devices that came by it stay. Raises AbsentError."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = session.get(Invitation, identifier)
            if row is None or row.uses_left < 1:
                raise AbsentError(f"no open invitation {identifier:.32}", hint="it was used up, or taken back")
            row.uses_left = 0
            self._core.note(session, actor.name, "invitation.withdraw", row.id)
