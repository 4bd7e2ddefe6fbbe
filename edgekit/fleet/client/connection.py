"""One service at one address, asked over HTTP; every failure as an edgekit error."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from edgekit import errors
from edgekit.errors import (
    AuthenticationError,
    EdgekitError,
    MismatchError,
    RemoteError,
    UnreachableError,
    UsageError,
)
from edgekit.fleet.protocol.wire import API, Problem, new_identifier
from edgekit.runtimes.loopback import is_loopback

Model = TypeVar("Model", bound=BaseModel)

TIMEOUT_S = 30.0
MOST_BYTES = 160 << 20  # of an answer that is read whole: a report may have 128 MiB
STEP_BYTES = 1 << 16  # of what comes: so much is lost at most where a link drops
_TIMES = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class Connection:
    """`url`: https://host:port, or http:// on loopback. `certificate`: (certificate, key) of a device. `repeats`: what
    broke off is sent once more. `most_bytes`: of an answer; a longer one is not read to its end."""

    def __init__(
        self,
        url: str,
        token: str = "",
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        repeats: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Raises UsageError for another kind of address, one to which a token would go in the clear, and what can be no
        token."""
        parts = _parts(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise UsageError(f"what is sent to {url} could be read on the way", hint="use https://")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("the token holds what no token holds", hint="give it alone, without a line end")
        self.url = url.rstrip("/")
        self._repeats, self._most_bytes = repeats, most_bytes
        self.skew_s = 0.0  # of this machine's clock ahead of the service's, by its last answer
        # Nothing comes compressed, so that what has come is as long as it looks.
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._http = httpx.Client(
            base_url=self.url + API,
            headers=headers,
            timeout=TIMEOUT_S,
            verify=_context(ca, certificate) if parts.scheme == "https" else True,
            trust_env=False,
        )

    def call(self, method: str, path: str, body: BaseModel | None = None, **options: Any) -> httpx.Response:
        """Raises the error that the service names, UnreachableError, RemoteError."""
        headers = {"Idempotency-Key": new_identifier()} if method == "POST" else {}
        if body is not None:
            options |= {"content": body.model_dump_json()}
            headers["Content-Type"] = "application/json"
        options["headers"] = headers
        answer = self._send(method, path, options)
        self.skew_s = _skew_s(answer)
        if answer.status_code >= 400:
            raise _with_patience(problem_of(answer.status_code, answer.content), answer)
        return answer

    def _send(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        """Once more where the connection broke, unless a body cannot be given twice; the key makes it count once."""
        for is_last in (False, True) if self._repeats and isinstance(options.get("content", ""), str) else (True,):
            try:
                with self._http.stream(method, path, **options) as answer:
                    told = [(name, answer.headers[name]) for name in ("Date", "Retry-After") if name in answer.headers]
                    return httpx.Response(answer.status_code, headers=told, content=self._whole(answer))
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if is_last:
                    raise _unreachable(self.url, error) from error
            except httpx.HTTPError as error:
                raise _unreachable(self.url, error) from error
        raise AssertionError("the last attempt returns or raises")

    def _whole(self, answer: httpx.Response) -> bytes:
        """Raises RemoteError for one that is too long."""
        chunks, size = [], 0
        for chunk in answer.iter_raw(STEP_BYTES):
            size += len(chunk)
            if size > self._most_bytes:
                raise RemoteError(
                    f"{self.url} answered with more than {self._most_bytes} bytes", hint="is it an edgekit fleet?"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def ask(self, kind: type[Model], method: str, path: str, body: BaseModel | None = None, **options: Any) -> Model:
        """The answer as a `kind`. Raises like `call`, and MismatchError for an answer of another kind."""
        answer = self.call(method, path, body, **options)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise MismatchError(
                f"{self.url} answered {path} with something else", hint="is it an edgekit fleet of this version?"
            ) from error

    def stream(self, path: str, start: int = 0) -> Iterator[bytes]:
        """A file from a byte on. Raises like `call`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if answer.status_code >= 400:
                    raise _with_patience(problem_of(answer.status_code, self._whole(answer)), answer)
                if start and answer.status_code != 206:
                    raise RemoteError(f"{self.url} sent all of {path}, not what is missing", hint="try again")
                yield from answer.iter_raw(STEP_BYTES)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def lines(self, path: str, params: dict[str, Any]) -> Iterator[str]:
        """A text, line by line, however long it is. Raises like `call`, and RemoteError where it breaks off."""
        try:
            with self._http.stream("GET", path, params=params) as answer:
                if answer.status_code >= 400:
                    raise problem_of(answer.status_code, self._whole(answer))
                yield from answer.iter_lines()
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def close(self) -> None:
        self._http.close()


def _parts(url: str) -> SplitResult:
    """Raises UsageError."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
        if known and httpx.URL(url).host and parts.port != 0:  # each of them raises for something else
            return parts
    except (ValueError, httpx.InvalidURL):
        pass
    raise UsageError(f"{url!r:.200} is no address of a fleet", hint="give it like https://fleet:8080")


def problem_of(status: int, body: bytes) -> EdgekitError:
    """The error that the service raised, as it raised it."""
    try:
        said = Problem.model_validate_json(body)
    except ValueError:
        return RemoteError(f"the fleet answered with status {status}", hint="is it an edgekit fleet?")
    kind = getattr(errors, said.kind, None)
    if isinstance(kind, type) and issubclass(kind, EdgekitError) and kind is not errors.UnknownNameError:
        try:
            return kind(said.error, hint=said.hint)
        except TypeError:
            pass
    return RemoteError(f"the fleet answered with status {status}: {said.error}", hint=said.hint)


def _with_patience(error: EdgekitError, answer: httpx.Response) -> EdgekitError:
    """With `retry_after_s` where the service says when it wants to be asked again."""
    with contextlib.suppress(ValueError):
        error.retry_after_s = max(0.0, float(answer.headers.get("Retry-After", "")))
    return error


def _unreachable(url: str, error: httpx.HTTPError) -> EdgekitError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return _untrusted(url, cause)
        cause = cause.__cause__ or cause.__context__
    hint = "does the fleet run there?"
    if url.startswith("https:") and not isinstance(error, (httpx.ConnectError, httpx.TimeoutException)):
        hint += " it hangs up on certificates that are not from its authority: edgekit agent enroll --again"
    return UnreachableError(f"{url} does not answer: {error or type(error).__name__}", hint=hint)


def _untrusted(url: str, error: ssl.SSLError) -> AuthenticationError:
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _TIMES:
        here = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        return AuthenticationError(
            f"the certificate of {url} does not count now: {error.verify_message}; the clock here says {here}",
            hint="is the clock right (date, timedatectl)? else the fleet's certificate has to be renewed",
        )
    if "ALERT_UNKNOWN_CA" in reason or "ALERT_BAD_CERTIFICATE" in reason or "ALERT_UNSUPPORTED_CERT" in reason:
        return AuthenticationError(
            f"{url} does not take this device's certificate: it is not from its authority ({reason})",
            hint="enroll with this fleet: edgekit agent enroll --again",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(
            f"TLS with {url} fails, its certificate is not trusted here: {error.verify_message}",
            hint="--ca names the authority of the fleet; a device whose fleet was set up anew enrolls again",
        )
    if "WRONG_VERSION_NUMBER" in reason:
        return AuthenticationError(
            f"{url} does not speak TLS", hint=f"for a fleet on this machine: {url.replace('https:', 'http:', 1)}"
        )
    return AuthenticationError(f"TLS with {url} fails: {reason}", hint="--ca names the authority of the fleet")


def _skew_s(answer: httpx.Response) -> float:
    """Of the clock here ahead of the service's; 0 where it does not say the time."""
    try:
        return time.time() - parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _context(ca: Path | None, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
    """Raises UsageError for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificate files cannot be used: {error}", hint="check their paths") from error
    return context
