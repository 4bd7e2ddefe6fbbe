"""Who is signed in on the page: a random key in the browser, its hash here, for as long as the token counts."""

from __future__ import annotations

import secrets

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from edgekit.errors import AuthenticationError
from edgekit.fleet.protocol.people import ROLES
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.people import Actor, People
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Person, SignIn
from edgekit.fleet.trust.tokens import hash_token

LASTS_S = 12 * 3600.0
UNUSED_S = 2 * 3600.0  # a sign-in whose pages nobody opens for so long ends
SEEN_EVERY_S = 60.0
MOST_EACH = 16  # browsers of one person at a time


@retried
class SignIns:
    def __init__(self, core: Core, people: People) -> None:
        self._core, self._people = core, people

    def begin(self, token: str) -> str:
        """The key for the browser. Raises AuthenticationError for a token that does not count."""
        actor = self._people.identify(token)
        key, now = secrets.token_urlsafe(32), self._core.now()
        with self._core.database.write() as session:
            session.execute(delete(SignIn).where(_over(now)))
            self._make_room(session, actor.name)
            session.add(
                SignIn(
                    key_hash=hash_token(key),
                    person=actor.name,
                    token_hash=hash_token(token),
                    ends_at=now + LASTS_S,
                    seen_at=now,
                )
            )
            self._core.note(session, actor.name, "page.sign-in", actor.name)
        return key

    def _make_room(self, session: Session, person: str) -> None:
        """The one that was used least lately ends."""
        query = select(SignIn).where(SignIn.person == person).order_by(SignIn.seen_at.desc(), SignIn.key_hash)
        for row in session.scalars(query.offset(MOST_EACH - 1)).all():
            session.delete(row)

    def identify(self, key: str) -> Actor:
        """Raises AuthenticationError once it has ended, or the person or the token is gone."""
        now = self._core.now()
        same_token = (Person.name == SignIn.person) & (Person.token_hash == SignIn.token_hash)
        query = select(SignIn, Person.role).join(Person, same_token).where(SignIn.key_hash == hash_token(key))
        counts = or_(Person.ends_at.is_(None), Person.ends_at > now)
        with self._core.database.read() as session:
            found = session.execute(query.where(~_over(now), counts)).first()
        if found is None:
            raise AuthenticationError("nobody is signed in", hint="sign in with your token")
        row, role = found
        if now - row.seen_at > SEEN_EVERY_S:
            with self._core.database.write() as session:
                kept = session.get(SignIn, row.key_hash)
                if kept is not None:
                    kept.seen_at = now
        return Actor(row.person, next(one for one in ROLES if one == role))

    def end(self, key: str) -> None:
        """A key that is not known changes nothing."""
        with self._core.database.write() as session:
            row = session.get(SignIn, hash_token(key))
            if row is not None:
                session.delete(row)
                self._core.note(session, row.person, "page.sign-out", row.person)


def _over(now: float) -> ColumnElement[bool]:
    return or_(SignIn.ends_at <= now, SignIn.seen_at <= now - UNUSED_S)
