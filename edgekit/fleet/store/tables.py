"""The tables. Times are seconds since 1970, UTC; what is only read back whole is JSON."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = JSON().with_variant(JSONB(), "postgresql")
# SQLite counts by itself only in a column of exactly this type.
Counter = BigInteger().with_variant(Integer(), "sqlite")


# Both databases call a constraint the same, so that a revision can name it.
NAMES = {
    "pk": "%(table_name)s_key",
    "uq": "%(table_name)s_by_%(column_0_N_name)s",
    "fk": "%(table_name)s_to_%(referred_table_name)s",
    "ck": "%(table_name)s_%(constraint_name)s",
    "ix": "%(table_name)s_by_%(column_0_N_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)


class Clock(Base):
    """One row. `tick` rises with every change that other workers have to hear of."""

    __tablename__ = "clock"

    id: Mapped[int] = mapped_column(primary_key=True)
    tick: Mapped[int] = mapped_column(BigInteger)


class Lease(Base):
    """Who does what only one worker may do, until `ends_at`."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    ends_at: Mapped[float] = mapped_column(Float)


class Person(Base):
    """`ends_at`: when the token counts no more; NULL for ever."""

    __tablename__ = "people"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float | None] = mapped_column(Float)
    ends_at: Mapped[float | None] = mapped_column(Float)


class SignIn(Base):
    """Who is signed in on the page. `key_hash`: of what the browser holds. `token_hash`: of the token that was shown,
    so that a sign-in ends with it; `seen_at`: of the last page, one that is not used ends."""

    __tablename__ = "sign_ins"

    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    person: Mapped[str] = mapped_column(ForeignKey("people.name", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    ends_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)


class Invitation(Base):
    """`device`: the id of one that is here already and gets a new key by it; NULL for new ones."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    labels: Mapped[dict[str, str]] = mapped_column(Json)
    uses_left: Mapped[int] = mapped_column(Integer)
    ends_at: Mapped[float] = mapped_column(Float)
    device: Mapped[str | None] = mapped_column(String(32))


class Device(Base):
    """`wanted`, `kept`, `plan`: its orders, of which `generation` counts the changes; `changed_tick`: the clock's at
    the last. `taken`: the last sequence of windows. `next_serial`: of a certificate that
    was issued and has not been used yet."""

    __tablename__ = "devices"
    __table_args__ = (Index("devices_by_change", "changed_tick"), Index("devices_by_running", "running"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    tier: Mapped[str] = mapped_column(String(16))
    standing: Mapped[str] = mapped_column(String(16))
    labels: Mapped[dict[str, str]] = mapped_column(Json)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    certificate_serial: Mapped[str] = mapped_column(String(64), unique=True)
    certificate_ends_at: Mapped[float] = mapped_column(Float)
    next_serial: Mapped[str | None] = mapped_column(String(64), unique=True)
    next_ends_at: Mapped[float | None] = mapped_column(Float)
    enrolled_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float | None] = mapped_column(Float)
    boot: Mapped[str] = mapped_column(String(32))
    facts: Mapped[dict[str, Any]] = mapped_column(Json)
    slot: Mapped[dict[str, Any]] = mapped_column(Json)
    running: Mapped[str | None] = mapped_column(String(64))
    wanted: Mapped[str | None] = mapped_column(String(64))
    kept: Mapped[list[str]] = mapped_column(Json)
    plan: Mapped[dict[str, Any] | None] = mapped_column(Json)
    latest: Mapped[dict[str, Any] | None] = mapped_column(Json)
    taken: Mapped[int] = mapped_column(BigInteger)
    generation: Mapped[int] = mapped_column(BigInteger)
    changed_tick: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(Integer)


class Group(Base):
    """`wanted`: the bundle of the last rollout that was completed in it, at `wanted_at`: who joins later gets it."""

    __tablename__ = "groups"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    selector: Mapped[str] = mapped_column(String(500))
    interval_s: Mapped[float] = mapped_column(Float)
    compare_share: Mapped[float] = mapped_column(Float)
    wanted: Mapped[str | None] = mapped_column(String(64))
    wanted_at: Mapped[float | None] = mapped_column(Float)
    version: Mapped[int] = mapped_column(Integer)


class BundleRow(Base):
    __tablename__ = "bundles"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    task: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(64))
    tiers: Mapped[list[str]] = mapped_column(Json)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    new_bytes: Mapped[int] = mapped_column(BigInteger)
    index: Mapped[str] = mapped_column(Text)
    signature: Mapped[str] = mapped_column(Text)
    signed_by: Mapped[str] = mapped_column(String(64))
    pushed_at: Mapped[float] = mapped_column(Float)
    pushed_by: Mapped[str] = mapped_column(String(63))


class BundleFile(Base):
    __tablename__ = "bundle_files"
    __table_args__ = (Index("bundle_files_by_content", "sha256"),)

    bundle: Mapped[str] = mapped_column(ForeignKey("bundles.digest", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Rollout(Base):
    """`order` and `stages` as the protocol and the policy have them. `active` is the group's name while it goes on and
    NULL behind its end: one at a time for each group. `before`: what the group wanted before it was completed."""

    __tablename__ = "rollouts"
    __table_args__ = (Index("rollouts_by_start", "started_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    bundle: Mapped[str] = mapped_column(String(64))
    group: Mapped[str] = mapped_column(String(63))
    active: Mapped[str | None] = mapped_column(String(63), unique=True)
    order: Mapped[dict[str, Any]] = mapped_column(Json)
    stages: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[int] = mapped_column(Integer)
    stage_at: Mapped[float] = mapped_column(Float)
    settled_at: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(Text)
    waits: Mapped[str] = mapped_column(Text)
    verdicts: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    before: Mapped[dict[str, Any] | None] = mapped_column(Json)
    started_at: Mapped[float] = mapped_column(Float)
    started_by: Mapped[str] = mapped_column(String(63))
    ended_at: Mapped[float | None] = mapped_column(Float)
    version: Mapped[int] = mapped_column(Integer)


class RolloutDevice(Base):
    """`previous`: what it should have run before. `asked_at`: when this rollout last told it what to run. `failure`:
    why it failed, also when it went back since."""

    __tablename__ = "rollout_devices"
    __table_args__ = (Index("rollout_devices_by_device", "device"),)

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    previous: Mapped[str | None] = mapped_column(String(64))
    asked_at: Mapped[float | None] = mapped_column(Float)
    failure: Mapped[str | None] = mapped_column(Text)


class WindowRow(Base):
    """`content`: the whole window as it came; the columns beside it are what queries ask for."""

    __tablename__ = "windows"
    __table_args__ = (Index("windows_by_time", "started_at"),)

    device: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    started_at: Mapped[float] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)
    digest: Mapped[str] = mapped_column(String(64))
    answered: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[dict[str, Any]] = mapped_column(Json)


class SpanRow(Base):
    """What the devices of a group saw in a stretch of time with one bundle, added up as it came in. `part`: of one
    worker since its start, which alone writes it; the parts of a span add up. `content`: counts and histograms."""

    __tablename__ = "spans"
    __table_args__ = (Index("spans_by_time", "starts_at"),)

    scope: Mapped[str] = mapped_column(String(80), primary_key=True)
    starts_at: Mapped[float] = mapped_column(Float, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    part: Mapped[str] = mapped_column(String(48), primary_key=True)
    content: Mapped[dict[str, Any]] = mapped_column(Json)


class Finding(Base):
    """What sets a device apart: from its peers (`kind` suspect) or from its own past (drift). `content`: the evidence,
    as the protocol has it."""

    __tablename__ = "findings"
    __table_args__ = (Index("findings_by_score", "kind", "score"),)

    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    metric: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    score: Mapped[float] = mapped_column(Float)
    since: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)
    content: Mapped[dict[str, Any]] = mapped_column(Json)


class ReferenceRow(Base):
    """The first answers of a device with a bundle, against which its later ones are held. `taken`: the sequence of the
    last window in it; `content`: histograms; `ended_at` NULL while it still fills."""

    __tablename__ = "reference_windows"

    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    taken: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[dict[str, Any]] = mapped_column(Json)
    ended_at: Mapped[float | None] = mapped_column(Float)


class Event(Base):
    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    actor: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]] = mapped_column(Json)


class Repeated(Base):
    """Answers to requests with an idempotency key: the same key gets the same answer."""

    __tablename__ = "repeated"

    key: Mapped[str] = mapped_column(String(300), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    at: Mapped[float] = mapped_column(Float)


class SignedRow(Base):
    """A version of a role's metadata, as The Update Framework has it; `body` as it was signed, byte for byte."""

    __tablename__ = "signed"

    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    ends_at: Mapped[float] = mapped_column(Float)
