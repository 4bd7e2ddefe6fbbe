"""People, their roles and their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, ForbiddenError
from edgekit.fleet.protocol.people import ROLES, PersonMade, PersonOrder, PersonView, Role
from edgekit.fleet.service.core import Core
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Person
from edgekit.fleet.trust.tokens import hash_token, new_token

SEEN_EVERY_S = 60.0


@dataclass(frozen=True)
class Actor:
    """Who asks."""

    name: str
    role: Role

    def need(self, role: Role) -> None:
        """Raises ForbiddenError for a lower one."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise ForbiddenError(f"{self.name} is a {self.role}; this wants {_article(role)}", hint="ask an admin")


def _article(role: Role) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


@retried
class People:
    def __init__(self, core: Core) -> None:
        self._core = core

    def identify(self, token: str) -> Actor:
        """Raises AuthenticationError."""
        with self._core.database.read() as session:
            row = session.scalar(select(Person).where(Person.token_hash == hash_token(token)))
        if row is None:
            raise AuthenticationError("the token is not known here", hint="ask an admin for one: edgekit fleet people")
        actor, now = Actor(row.name, _role(row.role)), self._core.now()
        if row.ends_at is not None and row.ends_at <= now:
            raise AuthenticationError("the token has ended", hint="ask an admin for a new one: edgekit fleet people")
        if row.seen_at is None or now - row.seen_at > SEEN_EVERY_S:
            with self._core.database.write() as session:
                found = session.get(Person, row.name)
                if found is not None:
                    found.seen_at = now
        return actor

    def found(self) -> str | None:
        """The first admin's token where there is nobody yet, told once; else None."""
        with self._core.database.write() as session:
            if session.scalar(select(func.count()).select_from(Person)):
                return None
            return self._add(session, "service", PersonOrder(name="admin", role="admin")).token

    def make(self, actor: Actor, order: PersonOrder) -> PersonMade:
        """Raises ConflictError where the name is taken."""
        actor.need("admin")
        with self._core.database.write() as session:
            if session.get(Person, order.name) is not None:
                raise ConflictError(f"there is a person {order.name}", hint="choose another name, or remove that one")
            return self._add(session, actor.name, order)

    def _add(self, session: Session, by: str, order: PersonOrder) -> PersonMade:
        token, now = new_token("person"), self._core.now()
        ends_at = None if order.valid_s is None else now + order.valid_s
        made = Person(name=order.name, role=order.role, token_hash=hash_token(token), created_at=now, ends_at=ends_at)
        session.add(made)
        self._core.note(session, by, "person.add", order.name, role=order.role, ends_at=ends_at)
        return PersonMade(name=order.name, role=order.role, created_at=now, ends_at=ends_at, token=token)

    def remove(self, actor: Actor, name: str) -> None:
        """Raises AbsentError, and ConflictError for the last admin."""
        actor.need("admin")
        with self._core.database.write() as session:
            row = session.get(Person, name)
            if row is None:
                raise AbsentError(f"no person {name}", hint="edgekit fleet people")
            if row.role == "admin" and not self._other_admins(session, name):
                raise ConflictError(f"{name} is the last admin", hint="add another one first")
            session.delete(row)
            self._core.note(session, actor.name, "person.remove", name)

    def _other_admins(self, session: Session, name: str) -> int:
        """Whose tokens count."""
        counts = or_(Person.ends_at.is_(None), Person.ends_at > self._core.now())
        others = (Person.role == "admin", Person.name != name, counts)
        return session.scalar(select(func.count()).select_from(Person).where(*others)) or 0

    def all(self) -> tuple[PersonView, ...]:
        with self._core.database.read() as session:
            rows = session.scalars(select(Person).order_by(Person.name))
            return tuple(
                PersonView(
                    name=row.name,
                    role=_role(row.role),
                    created_at=row.created_at,
                    last_seen_at=row.seen_at,
                    ends_at=row.ends_at,
                )
                for row in rows
            )


def _role(text: str) -> Role:
    return next(role for role in ROLES if role == text)
