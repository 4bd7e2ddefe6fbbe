"""Mutual TLS end to end: a real server, and agents as they connect to it."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.errors import (
    AuthenticationError,
    ConflictError,
    EdgekitError,
    ForbiddenError,
    NodeError,
    SignatureError,
    UnreachableError,
    UsageError,
)
from edgekit.fleet.agent.contact import METADATA, DeviceClient
from edgekit.fleet.agent.enrolment import enroll, is_renewal_due, renew
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import DEVICE, load_identity
from edgekit.fleet.client import AgentClient, FleetClient
from edgekit.fleet.protocol.agents import Sync
from edgekit.fleet.protocol.people import DeviceChange
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.fleet.store.tables import Device
from edgekit.fleet.trust.authority import DEVICE_DAYS, Authority, private_pem
from tests.fleet.acting import ADMIN, push
from tests.fleet.bundles import make_bundle
from tests.fleet.server.tls import Place, serving

DAY_S = 86_400.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving(tmp_path / "data") as found:
        yield found


@pytest.fixture
def home(place: Place, tmp_path: Path) -> Home:
    """Of a device that has enrolled, by its invitation alone."""
    made = Home(tmp_path / "home")
    enroll(made, place.url, place.invite(), "pi-1", "device")
    return made


def with_certificate(home: Home, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    home.replace(DEVICE, certificate.public_bytes(serialization.Encoding.PEM) + private_pem(key))


def issued(
    authority: Path, *, starts_in: timedelta, ends_in: timedelta, name: str = "x"
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate that the authority in this folder could have given, at another time."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key((authority / "authority.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((authority / "authority.pem").read_bytes())
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts_in)
        .not_valid_after(now + ends_in)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    return made, key


@contextmanager
def client(home: Home) -> Iterator[DeviceClient]:
    made = DeviceClient(home)
    try:
        yield made
    finally:
        made.close()


def sync(home: Home) -> None:
    with client(home) as found:
        found.sync(Sync())


def test_an_invitation_is_enough_to_enrol_and_to_be_heard(place: Place, home: Home) -> None:
    sync(home)
    assert place.service.devices.get("pi-1").connected
    assert load_identity(home).fleet == place.url
    for name in (DEVICE, "fleet.pem", "identity.json", "root.json"):
        assert (home.path / name).stat().st_mode & 0o777 == 0o600, name


def test_an_enrolled_folder_is_not_enrolled_again_by_mistake(place: Place, home: Home) -> None:
    before = (home.path / DEVICE).read_bytes()
    with pytest.raises(ConflictError, match="is enrolled already"):
        enroll(home, place.url, place.invite(), "pi-2", "device")
    assert (home.path / DEVICE).read_bytes() == before


def test_a_device_gets_a_new_key_and_its_old_folder_is_worthless(place: Place, home: Home, tmp_path: Path) -> None:
    copy = Home(tmp_path / "copy")
    copy.make()
    for name in (DEVICE, "fleet.pem", "identity.json", "root.json"):
        copy.replace(name, (home.path / name).read_bytes())
    sync(copy)
    enroll(home, place.url, place.invite("pi-1"), "pi-1", "device", again=True)
    sync(home)
    with pytest.raises(AuthenticationError):
        sync(copy)


def test_an_invitation_of_one_fleet_does_not_trust_another(place: Place, tmp_path: Path) -> None:
    """Somebody in between who answers with a service of his own."""
    home = Home(tmp_path / "home")
    with serving(tmp_path / "other") as other, pytest.raises(AuthenticationError, match="not the fleet that made"):
        enroll(home, other.url, place.invite(), "pi-1", "device")
    assert not (home.path / "identity.json").exists()


def test_who_hands_on_the_authority_but_has_no_certificate_of_it_is_refused(place: Place, tmp_path: Path) -> None:
    with serving(tmp_path / "other") as other:
        token = place.invite()
        other.service.core.authority._certificate = place.service.core.authority._certificate
        with pytest.raises(AuthenticationError, match="TLS with"):
            enroll(Home(tmp_path / "home"), other.url, token, "pi-1", "device")


def test_without_the_authority_the_systems_ones_decide(place: Place, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="--ca"):
        enroll(Home(tmp_path / "home"), place.url, place.invite().partition(".")[0], "pi-1", "device")
    enroll(Home(tmp_path / "home"), place.url, place.invite().partition(".")[0], "pi-1", "device", ca=place.ca)


def test_a_certificate_of_the_owners_own_is_verified_by_the_systems_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = Authority(tmp_path / "public")  # stands for one that systems come with
    pem, key = public.issue_service(("127.0.0.1",))
    (tmp_path / "cert.pem").write_text(pem)
    (tmp_path / "key.pem").write_text(key)
    with serving(tmp_path / "data", (tmp_path / "cert.pem", tmp_path / "key.pem")) as place:
        token = place.invite()
        assert "." not in token
        home = Home(tmp_path / "home")
        with pytest.raises(AuthenticationError):
            enroll(home, place.url, token, "pi-1", "device")
        monkeypatch.setenv("SSL_CERT_FILE", str(public.certificate_path))
        enroll(home, place.url, token, "pi-1", "device")
        sync(home)
        assert not (home.path / "fleet.pem").exists()


def test_no_certificate_no_device(place: Place, home: Home) -> None:
    identity = load_identity(home)
    bare = AgentClient(place.url, identity.token, place.ca)
    with pytest.raises(AuthenticationError, match="without a device's certificate"):
        bare.sync(Sync())
    with pytest.raises(AuthenticationError):
        b"".join(bare.metadata("timestamp.json"))
    bare.close()


def test_a_device_is_no_person_and_a_person_no_device(place: Place, home: Home) -> None:
    token = place.service.people.found()
    assert token is not None
    with client(home) as found, pytest.raises(AuthenticationError):
        found.connection.call("GET", "/devices")
    with FleetClient(place.url, token, place.ca) as person, pytest.raises(AuthenticationError):
        person.connection.call("POST", "/agent/sync", Sync())


def test_foreign_certificates_are_refused(place: Place, home: Home, tmp_path: Path) -> None:
    Authority(tmp_path / "foreign")
    with_certificate(home, *issued(tmp_path / "foreign", starts_in=timedelta(-1), ends_in=timedelta(1)))
    with pytest.raises((AuthenticationError, UnreachableError)) as caught:
        sync(home)
    assert "authority" in f"{caught.value}"
    assert place.service.devices.get("pi-1").seen_at is None


def test_a_certificate_that_the_fleet_never_gave_is_refused(place: Place, home: Home) -> None:
    with_certificate(home, *issued(place.ca.parent, starts_in=timedelta(-1), ends_in=timedelta(1)))
    with pytest.raises(AuthenticationError, match="not known here"):
        sync(home)


def test_the_services_own_certificate_is_no_devices(place: Place, home: Home) -> None:
    home.replace(DEVICE, place.ca.with_name("service.pem").read_bytes())
    with pytest.raises((AuthenticationError, UnreachableError)):
        sync(home)
    assert place.service.devices.get("pi-1").seen_at is None


def test_expired_certificates_are_refused_and_say_what_to_do(place: Place, home: Home) -> None:
    with_certificate(home, *issued(place.ca.parent, starts_in=timedelta(-9), ends_in=timedelta(minutes=-1)))
    with pytest.raises(AuthenticationError, match=r"certificate has ended, at .*; the clock here says") as caught:
        sync(home)
    assert "enroll --again" in caught.value.hint
    with client(home) as found, pytest.raises(AuthenticationError, match="has ended"):
        b"".join(found.metadata("timestamp.json"))


def test_a_certificate_that_ends_while_its_connection_stays_counts_no_more(place: Place, home: Home) -> None:
    certificate, key = issued(place.ca.parent, starts_in=timedelta(-9), ends_in=timedelta(seconds=2))
    with_certificate(home, certificate, key)
    with place.service.database.write() as session:
        row = session.get(Device, load_identity(home).device)
        assert row is not None
        row.certificate_serial = f"{certificate.serial_number:x}"
        row.changed_tick = place.service.database.tick(session)
    with client(home) as found:
        found.renew_if_due = lambda: False  # type: ignore[method-assign]
        found.sync(Sync())
        time.sleep(max(0.0, certificate.not_valid_after_utc.timestamp() - time.time()) + 0.05)
        with pytest.raises(AuthenticationError, match="has ended"):
            found.sync(Sync())


def test_a_certificate_from_the_future_is_refused(place: Place, home: Home) -> None:
    with_certificate(home, *issued(place.ca.parent, starts_in=timedelta(1), ends_in=timedelta(9)))
    with pytest.raises(AuthenticationError, match="counts only from"):
        sync(home)


@pytest.mark.parametrize(("starts", "ends"), [(1, 9), (-9, -1)])
def test_a_clock_that_is_wrong_is_told_of(place: Place, tmp_path: Path, starts: int, ends: int) -> None:
    """As a device with a clock that is days behind, or ahead, sees a fleet's certificate."""
    made, key = issued(place.ca.parent, starts_in=timedelta(starts), ends_in=timedelta(ends))
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    with serving(tmp_path / "late", (tmp_path / "cert.pem", tmp_path / "key.pem")) as late:
        with pytest.raises(AuthenticationError, match=r"the clock here says 20\d\d-") as caught:
            enroll(
                Home(tmp_path / "home"), late.url.replace("127.0.0.1", "localhost"), "eki_x", "pi", "device", place.ca
            )
        assert "timedatectl" in caught.value.hint


def test_a_clock_that_is_somewhat_wrong_is_told_of_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = time.time
    monkeypatch.setattr("edgekit.fleet.client.connection.time.time", lambda: real() + 1000)
    with caplog.at_level(logging.WARNING, "edgekit"), client(home) as found:
        found.sync(Sync())
        found.sync(Sync())
    assert re.search(r"this device's clock is \d{3,4} s ahead of that of the fleet", caplog.text)
    assert caplog.text.count("clock") == 1


def test_revocation_ends_what_waits_and_what_comes(place: Place, home: Home) -> None:
    told: list[EdgekitError] = []

    def wait(found: DeviceClient) -> None:
        known = found.sync(Sync()).generation
        waiting.set()
        try:
            for _ in range(3):  # an answer may be on its way already
                found.sync(Sync(known=known, wait_s=30))
        except EdgekitError as error:
            told.append(error)

    waiting = threading.Event()
    with client(home) as found:
        thread = threading.Thread(target=wait, args=(found,))
        thread.start()
        assert waiting.wait(20)
        place.service.devices.change(ADMIN, "pi-1", DeviceChange(standing="revoked"))
        thread.join(20)
        assert not thread.is_alive()
        assert isinstance(told[0], ForbiddenError)
        for ask in (lambda: found.sync(Sync()), lambda: b"".join(found.metadata("timestamp.json"))):
            with pytest.raises(ForbiddenError, match="revoked"):
                ask()


def test_a_certificate_is_renewed_at_two_thirds_of_its_life(place: Place, home: Home) -> None:
    started = time.time()
    assert not is_renewal_due(home, started + 0.66 * DEVICE_DAYS * DAY_S)
    assert is_renewal_due(home, started + 0.67 * DEVICE_DAYS * DAY_S)
    before = (home.path / DEVICE).read_bytes()
    at = [started]
    found = DeviceClient(home, now=lambda: at[0])
    found.sync(Sync())
    assert (home.path / DEVICE).read_bytes() == before
    at[0] += 0.7 * DEVICE_DAYS * DAY_S
    found.sync(Sync())
    found.close()
    assert (home.path / DEVICE).read_bytes() != before
    sync(home)
    home.replace(DEVICE, before)
    with pytest.raises(AuthenticationError):
        sync(home)


def test_a_renewal_that_was_cut_off_leaves_the_device_as_it_was(place: Place, home: Home) -> None:
    """The fleet has given the certificate; the answer is lost."""
    with client(home) as found:
        before = (home.path / DEVICE).read_bytes()
        renew(home, found, "pi-1")
        home.replace(DEVICE, before)
    sync(home)
    with client(home) as found:
        renew(home, found, "pi-1")
    sync(home)
    assert [event.action for event in place.service.core.events(subject="pi-1").items].count("device.renew") == 1


def test_a_renewal_that_fails_is_tried_again_later(
    place: Place, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = [time.time() + 0.7 * DEVICE_DAYS * DAY_S]
    found = DeviceClient(home, now=lambda: at[0])

    def down(*_: object) -> None:
        raise UnreachableError("the network dropped", hint="none")

    with monkeypatch.context() as patch:
        patch.setattr(found, "renew", down)
        found.sync(Sync())
    assert "not renewed yet: the network dropped" in caplog.text
    before = (home.path / DEVICE).read_bytes()
    found.sync(Sync())
    assert (home.path / DEVICE).read_bytes() == before
    at[0] += 3601
    found.sync(Sync())
    assert (home.path / DEVICE).read_bytes() != before
    found.close()


def test_a_device_takes_what_is_signed_and_hears_of_nothing_else(place: Place, home: Home, tmp_path: Path) -> None:
    digest = push(place.service, make_bundle(tmp_path / "net", as_directory=True)).digest
    other = push(place.service, make_bundle(tmp_path / "two", scale=3.0, as_directory=True)).digest
    with client(home) as found:
        assert found.index(digest) == place.service.bundles.index(digest)
        with place.service.database.write() as session:
            place.service.trust.withdraw(session, other)  # it lies in the registry, and nobody vouches for it
        with pytest.raises(SignatureError, match="does not name"):
            found.index(other)
    assert (home.path / METADATA / "timestamp.json").exists()


def test_every_answer_wants_to_be_asked_by_tls_alone(place: Place) -> None:
    context = ssl.create_default_context(cafile=str(place.ca))
    with httpx.Client(base_url=place.url, verify=context, trust_env=False, timeout=30) as http:
        for path in ("/v1/health", "/v1/devices", "/sign-in", "/nothing"):
            assert http.get(path).headers["strict-transport-security"] == "max-age=31536000", path


def test_nothing_but_loopback_is_served_without_tls(place: Place) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(NodeError, match="without TLS"):
            make_server(place.service, Listening(host=host))


def test_halves_that_do_not_fit_are_told(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    (tmp_path / "cert.pem").write_text(first.issue_service(("127.0.0.1",))[0])
    (tmp_path / "key.pem").write_text(second.issue_service(("127.0.0.1",))[1])
    service = FleetService(tmp_path / "data")
    with pytest.raises(NodeError, match="certificate cannot be used"):
        make_server(service, Listening(tls=True, certificate=(tmp_path / "cert.pem", tmp_path / "key.pem")))
    service.close()


@pytest.mark.parametrize("name", ["Bad Name", "", "x" * 64, "-pi", "ä"])
def test_a_name_that_cannot_be_is_told_without_the_token(place: Place, tmp_path: Path, name: str) -> None:
    token = place.invite()
    with pytest.raises(UsageError, match="cannot be") as caught:
        enroll(Home(tmp_path / "home"), place.url, token, name, "device")
    assert token[:20] not in f"{caught.value}"
    with pytest.raises(UsageError, match="the token cannot be"):
        enroll(Home(tmp_path / "home"), place.url, "eki_" + "x" * 300, "pi-1", "device", place.ca)
