"""What a database says when it cannot, in our own errors."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError, TimeoutError

from edgekit.errors import ConflictError, EdgekitError, StoreError, UsageError

# PostgreSQL's codes: https://www.postgresql.org/docs/15/errcodes-appendix.html
_AGAIN = ("40001", "40P01")  # a transaction that could not be serialized, a deadlock: nothing was wrong with it
_LOCKED, _FULL, _READ_ONLY, _DAMAGED = ("55P03",), ("53100",), ("25006",), ("XX001", "XX002")
_STATES = dict.fromkeys(_LOCKED, "locked") | dict.fromkeys(_FULL, "full") | dict.fromkeys(_READ_ONLY, "read-only")
_STATES |= dict.fromkeys(_DAMAGED, "damaged")
# SQLite has words alone before Python 3.11.
_WORDS = {
    "locked": "locked",
    "disk is full": "full",
    "readonly": "read-only",
    "malformed": "damaged",
    "not a database": "damaged",
    # Of a connection that PostgreSQL refuses, which comes without a code.
    "does not exist": "refused",
    "authentication failed": "refused",
    "no password supplied": "refused",
    "pg_hba.conf": "refused",
}

_HINTS = {
    "locked": "another change takes long: try again; is something else at work on the database?",
    "full": "nothing was changed: make room where the database lies, and try again",
    "read-only": "nothing was changed: let the service write where the database lies",
    "damaged": "stop the service, keep a copy of the database, and restore a backup: edgekit fleet restore",
    "refused": "check user, password (or ~/.pgpass) and name in --db; createdb makes a database, its user must own it",
    "down": "nothing was changed; is the database running? try again",
}


def translated(error: SQLAlchemyError) -> EdgekitError | None:
    """Our error for it; None for what can only be a mistake of edgekit's."""
    if isinstance(error, IntegrityError):
        return ConflictError(f"another change came first: {first_line(error)}", hint="read again, and try again")
    if isinstance(error, DataError):
        return UsageError(f"this cannot be stored: {first_line(error)}", hint="is it text without NUL?")
    if isinstance(error, TimeoutError):
        return StoreError("the database is slow: every connection to it is in use", hint="try again later")
    if not isinstance(error, DBAPIError) or isinstance(error, ProgrammingError):
        return None
    state = getattr(error.orig, "sqlstate", None)
    if state in _AGAIN:
        return StoreError(f"another change crossed this one: {first_line(error)}", hint="try again", again=True)
    kind = _STATES.get(state or "") or next((kind for word, kind in _WORDS.items() if word in str(error.orig)), "down")
    return StoreError(f"the database {_SAID[kind]}: {first_line(error)}", hint=_HINTS[kind])


_SAID = {
    "locked": "is locked",
    "full": "is full",
    "read-only": "is read-only",
    "damaged": "is damaged",
    "refused": "refuses to be used",
    "down": "cannot be used",
}


def first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
