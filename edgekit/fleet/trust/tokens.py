"""Tokens: 256 random bits, of which the service keeps a hash.

A plain SHA-256 is enough for them, because nobody can guess among 2**256; slow hashes are for words that people choose.
The prefix lets scanners of source code find one that was committed by mistake.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

Kind = Literal["person", "invitation", "device"]
PREFIXES: dict[Kind, str] = {"person": "ekp_", "invitation": "eki_", "device": "ekd_"}


def new_token(kind: Kind) -> str:
    return PREFIXES[kind] + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def secret_of(token: str) -> str:
    """Of an invitation, without the authority's fingerprint behind the dot."""
    return token.partition(".")[0]


def pin_of(token: str) -> str:
    """The SHA-256 of the authority's certificate that an invitation carries, "" without."""
    return token.partition(".")[2]
