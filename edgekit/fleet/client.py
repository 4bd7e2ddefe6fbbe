"""The service's API from Python: what the command line and the agent use, and scripts may."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from edgekit import errors
from edgekit.bundle.archive import read_archive
from edgekit.errors import (
    AuthenticationError,
    EdgekitError,
    MismatchError,
    RemoteError,
    UnreachableError,
    UsageError,
)
from edgekit.fleet.protocol.agents import Desired, Enrolled, Enrolment, Renewal, Sync
from edgekit.fleet.protocol.bundles import BundleView, Offer, Received, Wanted
from edgekit.fleet.protocol.insights import Finding, FindingKind, PlanView
from edgekit.fleet.protocol.people import (
    DeviceChange,
    DeviceView,
    EventView,
    GroupOrder,
    GroupView,
    InvitationMade,
    InvitationOrder,
    Overview,
    PersonMade,
    PersonOrder,
    PersonView,
)
from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutView
from edgekit.fleet.protocol.telemetry import TelemetryView
from edgekit.fleet.protocol.wire import API, Page, Problem, new_identifier
from edgekit.runtimes.loopback import is_loopback

Model = TypeVar("Model", bound=BaseModel)

TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
STEP_BYTES = 1 << 16  # of what comes: so much is lost at most where a link drops
_TIMES = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_DIGESTS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_GROUPS: TypeAdapter[tuple[GroupView, ...]] = TypeAdapter(tuple[GroupView, ...])
_PEOPLE: TypeAdapter[tuple[PersonView, ...]] = TypeAdapter(tuple[PersonView, ...])


class Connection:
    """`url`: https://host:port, or http:// on loopback. `certificate`: (certificate, key) of a device. `repeats`: what
    broke off is sent once more."""

    def __init__(
        self,
        url: str,
        token: str = "",
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        repeats: bool = False,
    ) -> None:
        """Raises UsageError for another kind of address, or one to which a token would go in the clear."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(f"{url!r:.200} is no address of a fleet", hint="give it like https://fleet:8080")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise UsageError(f"what is sent to {url} could be read on the way", hint="use https://")
        self.url = url.rstrip("/")
        self._repeats = repeats
        self.skew_s = 0.0  # of this machine's clock ahead of the service's, by its last answer
        headers = {"Authorization": f"Bearer {token}"} if token else {}
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
                return self._http.request(method, path, **options)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if is_last:
                    raise _unreachable(self.url, error) from error
            except httpx.HTTPError as error:
                raise _unreachable(self.url, error) from error
        raise AssertionError("the last attempt returns or raises")

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
                    raise _with_patience(problem_of(answer.status_code, answer.read()), answer)
                if start and answer.status_code != 206:
                    raise RemoteError(f"{self.url} sent all of {path}, not what is missing", hint="try again")
                yield from answer.iter_bytes(STEP_BYTES)
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def lines(self, path: str, params: dict[str, Any]) -> Iterator[str]:
        """A text, line by line, however long it is. Raises like `call`, and RemoteError where it breaks off."""
        try:
            with self._http.stream("GET", path, params=params) as answer:
                if answer.status_code >= 400:
                    raise problem_of(answer.status_code, answer.read())
                yield from answer.iter_lines()
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def close(self) -> None:
        self._http.close()


class FleetClient:
    """What people ask. Close it, or use `with`."""

    def __init__(self, url: str, token: str, ca: Path | None = None) -> None:
        self.connection = Connection(url, token, ca, repeats=True)
        self._ask = self.connection.ask

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def overview(self) -> Overview:
        return self._ask(Overview, "GET", "/overview")

    def push(self, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> BundleView:
        """Sends what the registry lacks of a bundle (an archive or a folder). `progress`: bytes done, of all."""
        with _Source(path) as source:
            offer = source.offer
            wanted = self._ask(Wanted, "POST", "/uploads", offer)
            total = wanted.held + sum(one.size_bytes for one in wanted.missing)
            done = wanted.held
            for one in wanted.missing:
                progress(done + one.received, total)
                self._send(source, one.path, one.sha256, one.received, one.size_bytes)
                done += one.size_bytes
            progress(total, total)
            return self._ask(BundleView, "POST", "/bundles", offer)

    def _send(self, source: _Source, path: str, sha256: str, at: int, size: int) -> None:
        self._ask(
            Received,
            "PUT",
            f"/blobs/{sha256}",
            params={"at": at, "size": size},
            content=source.read(path, at),
            timeout=httpx.Timeout(TIMEOUT_S, write=None),
        )

    def bundles(self, after: str | None = None, limit: int = 100) -> Page[BundleView]:
        return self._ask(Page[BundleView], "GET", "/bundles", params=_page(after, limit))

    def bundle(self, reference: str) -> BundleView:
        return self._ask(BundleView, "GET", f"/bundles/{reference}")

    def report(self, reference: str) -> bytes:
        return bytes(self.connection.call("GET", f"/bundles/{reference}/report").content)

    def remove_bundle(self, reference: str) -> None:
        self.connection.call("DELETE", f"/bundles/{reference}")

    def prune_bundles(self, keep: int, name: str = "") -> tuple[str, ...]:
        answer = self.connection.call("POST", "/retention/bundles", params={"keep": keep, "name": name})
        return _DIGESTS.validate_json(answer.content)

    def invite(self, order: InvitationOrder) -> InvitationMade:
        return self._ask(InvitationMade, "POST", "/invitations", order)

    def devices(self, selector: str = "", after: str | None = None, limit: int = 100) -> Page[DeviceView]:
        return self._ask(Page[DeviceView], "GET", "/devices", params={"selector": selector, **_page(after, limit)})

    def device(self, key: str) -> DeviceView:
        return self._ask(DeviceView, "GET", f"/devices/{key}")

    def change_device(self, key: str, change: DeviceChange) -> DeviceView:
        return self._ask(DeviceView, "PATCH", f"/devices/{key}", change)

    def remove_device(self, key: str) -> None:
        self.connection.call("DELETE", f"/devices/{key}")

    def groups(self) -> tuple[GroupView, ...]:
        return _GROUPS.validate_json(self.connection.call("GET", "/groups").content)

    def put_group(self, name: str, order: GroupOrder) -> GroupView:
        return self._ask(GroupView, "PUT", f"/groups/{name}", order)

    def remove_group(self, name: str) -> None:
        self.connection.call("DELETE", f"/groups/{name}")

    def roll_out(self, order: RolloutOrder) -> RolloutView:
        return self._ask(RolloutView, "POST", "/rollouts", order)

    def rollouts(self, after: str | None = None, limit: int = 50) -> Page[RolloutView]:
        return self._ask(Page[RolloutView], "GET", "/rollouts", params=_page(after, limit))

    def rollout(self, key: str = "latest") -> RolloutView:
        return self._ask(RolloutView, "GET", f"/rollouts/{key}")

    def turn_rollout(self, key: str, verb: str) -> RolloutView:
        """`verb`: pause, resume or rollback."""
        return self._ask(RolloutView, "POST", f"/rollouts/{key}/{verb}")

    def insights(
        self, kind: FindingKind | None = None, device: str = "", after: str | None = None, limit: int = 100
    ) -> Page[Finding]:
        """Suspects and drift, the worst first."""
        params = {"device": device, **({} if kind is None else {"kind": kind}), **_page(after, limit)}
        return self._ask(Page[Finding], "GET", "/insights", params=params)

    def plan(self, key: str) -> PlanView:
        return self._ask(PlanView, "GET", f"/devices/{key}/plan")

    def replan(self, key: str) -> PlanView:
        return self._ask(PlanView, "POST", f"/devices/{key}/replan")

    def telemetry(self, device: str, group: str, since: float, until: float, step_s: float) -> TelemetryView:
        """Of a device, of a group, or with "" for both of everyone."""
        params = {"device": device, "group": group, "since": since, "until": until, "step_s": step_s}
        return self._ask(TelemetryView, "GET", "/telemetry", params=params)

    def windows(self, selector: str, since: float, until: float) -> Iterator[str]:
        """Every window of the devices that it holds, as lines of CSV behind a header."""
        return self.connection.lines("/telemetry/windows", {"selector": selector, "since": since, "until": until})

    def events(self, after: str | None = None, limit: int = 50, subject: str = "") -> Page[EventView]:
        return self._ask(Page[EventView], "GET", "/events", params={"subject": subject, **_page(after, limit)})

    def people(self) -> tuple[PersonView, ...]:
        return _PEOPLE.validate_json(self.connection.call("GET", "/people").content)

    def add_person(self, order: PersonOrder) -> PersonMade:
        return self._ask(PersonMade, "POST", "/people", order)

    def remove_person(self, name: str) -> None:
        self.connection.call("DELETE", f"/people/{name}")


class AgentClient:
    """What an agent asks, as the device that it is."""

    def __init__(
        self, url: str, token: str = "", ca: Path | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.connection = Connection(url, token, ca, certificate)

    def enroll(self, enrolment: Enrolment) -> Enrolled:
        return self.connection.ask(Enrolled, "POST", "/enroll", enrolment)

    def renew(self, renewal: Renewal) -> Enrolled:
        return self.connection.ask(Enrolled, "POST", "/agent/renew", renewal)

    def sync(self, sync: Sync) -> Desired:
        return self.connection.ask(Desired, "POST", "/agent/sync", sync, timeout=TIMEOUT_S + sync.wait_s)

    def index(self, digest: str) -> Offer:
        return self.connection.ask(Offer, "GET", f"/bundles/{digest}/index")

    def metadata(self, name: str) -> Iterator[bytes]:
        """A file of signed metadata, as it was signed. Raises AbsentError where there is none."""
        return self.connection.stream(f"/tuf/{name}")

    def blob(self, sha256: str, start: int = 0) -> Iterator[bytes]:
        return self.connection.stream(f"/blobs/{sha256}", start)

    def close(self) -> None:
        self.connection.close()


class _Source:
    """A bundle on disk as files: an archive or a folder, whose hashes are checked where it is received."""

    def __init__(self, path: Path) -> None:
        from edgekit.bundle import Bundle

        with Bundle.open(path):  # verified here too, before anything is sent
            pass
        self._folder = path if path.is_dir() else None
        self._stream: BinaryIO | None = None if path.is_dir() else path.open("rb")
        self._members = {} if self._stream is None else read_archive(self._stream, str(path))
        self.offer = Offer(index=self._text("index.json"), signature=self._text("signature.json"))

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _text(self, name: str) -> str:
        there = (self._folder / name).is_file() if self._folder is not None else name in self._members
        return b"".join(self.read(name, 0)).decode() if there else ""

    def read(self, name: str, at: int) -> Iterator[bytes]:
        if self._folder is not None:
            with (self._folder / name).open("rb") as stream:
                stream.seek(at)
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
            return
        assert self._stream is not None
        member = self._members[name]
        while at < member.size_bytes:
            self._stream.seek(member.offset + at)
            chunk = self._stream.read(min(CHUNK_BYTES, member.size_bytes - at))
            if not chunk:
                return
            at += len(chunk)
            yield chunk


def problem_of(status: int, body: bytes) -> EdgekitError:
    """The error that the service raised, as it raised it."""
    try:
        said = Problem.model_validate(json.loads(body))
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


def _page(after: str | None, limit: int) -> dict[str, Any]:
    return {"limit": limit, **({} if after is None else {"after": after})}
