"""Signing in on the page: a cookie of random bits, and a word in every form that other sites cannot know.

The cookie is HttpOnly, SameSite=Strict, and under TLS Secure with the prefix __Host-, so that no other host, port
without TLS or script can set or read it; what it opens is kept by `edgekit.fleet.service.sign_ins`. Before somebody
signs in, a cookie of the same kind, which opens nothing, ties the form of signing in to the browser it was sent to.
The word of a form is an HMAC by the cookie (OWASP, Cross-Site Request Forgery Prevention, HMAC-based tokens).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated
from urllib.parse import parse_qsl, quote, urlsplit

from anyio import to_thread
from fastapi import Depends, Request
from starlette.responses import Response

from edgekit.errors import AuthenticationError, ForbiddenError, UsageError
from edgekit.fleet.server.asking import service_of
from edgekit.fleet.service.people import Actor

SIGNED_IN, VISITING = "edgekit-fleet", "edgekit-visit"
WORD = "word"  # the field of every form
MOST_BYTES, MOST_FIELDS = 64 * 1024, 100
FORM = "application/x-www-form-urlencoded"


def _name(request: Request, name: str) -> str:
    return f"__Host-{name}" if request.url.scheme == "https" else name


def cookie_of(request: Request, name: str) -> str:
    """ "" where there is none that could be ours."""
    found = str(request.cookies.get(_name(request, name), ""))
    return found if 32 <= len(found) <= 64 else ""


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """Until the browser is closed; the service ends it sooner."""
    secure = request.url.scheme == "https"
    response.set_cookie(_name(request, name), value, path="/", secure=secure, httponly=True, samesite="strict")


def drop_cookie(request: Request, response: Response, name: str) -> None:
    secure = request.url.scheme == "https"
    response.delete_cookie(_name(request, name), path="/", secure=secure, httponly=True, samesite="strict")


def new_visit() -> str:
    return secrets.token_urlsafe(32)


def word_of(cookie: str) -> str:
    """Another one each time, so that the length of compressed pages tells nothing of it (Prado et al. 2013, BREACH)."""
    salt = secrets.token_hex(16)
    return salt + _signed(cookie, salt)


def _signed(cookie: str, salt: str) -> str:
    return hmac.new(cookie.encode(), f"a form of the page {salt}".encode(), hashlib.sha256).hexdigest()


def counts(word: str, cookie: str) -> bool:
    """Whether this browser was sent the word."""
    salt, signature = word[:32], word[32:]
    return bool(cookie) and hmac.compare_digest(signature.encode(), _signed(cookie, salt).encode())


async def signed_in(request: Request) -> Actor:
    """Raises AuthenticationError."""
    key = cookie_of(request, SIGNED_IN)
    if not key:
        raise AuthenticationError("nobody is signed in", hint="sign in with your token")
    return await to_thread.run_sync(service_of(request).sign_ins.identify, key)


async def read_form(request: Request, cookie: str) -> dict[str, str]:
    """The fields of a form that this page sent to this browser; of a name that comes twice, the last.

    Raises ForbiddenError for one from elsewhere, UsageError for what is no form.
    """
    _refuse_elsewhere(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise UsageError("this is no form of the page", hint="open the page and send its form")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise UsageError(f"a form of more than {MOST_BYTES:,} bytes", hint="send less")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise UsageError("this is no form of the page", hint="open the page and send its form") from error
    if not counts(fields.pop(WORD, ""), cookie):
        raise ForbiddenError("the form is not of this sign-in", hint="open the page again, then send the form")
    return fields


def _refuse_elsewhere(request: Request) -> None:
    """Browsers say where a form comes from; a client that says nothing still needs the word."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    here = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if site not in ("same-origin", "none") or origin not in (None, here):
        raise ForbiddenError("the form comes from another site", hint="open the page itself, then send the form")


async def form(request: Request) -> dict[str, str]:
    return await read_form(request, cookie_of(request, SIGNED_IN))


Visitor = Annotated[Actor, Depends(signed_in)]
Form = Annotated[dict[str, str], Depends(form)]


def place_after(wanted: str) -> str:
    """Where to go on after signing in: a path of this page, "/" for anything else."""
    if not wanted.startswith("/") or wanted.startswith("//") or any(ord(c) <= 32 or c in "\\\x7f" for c in wanted):
        return "/"
    parts = urlsplit(wanted)
    if parts.scheme or parts.netloc or len(wanted) > 1000:
        return "/"
    return quote(wanted, safe="/?&=%:,.~-_+@!")
