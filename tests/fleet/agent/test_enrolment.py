"""The first contact, and somebody in between who shows the fleet's own authority."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.errors import AuthenticationError, UsageError
from edgekit.fleet.agent.enrolment import enroll, fetch_authority
from edgekit.fleet.agent.home import Home
from edgekit.fleet.trust.authority import Authority
from edgekit.fleet.trust.files import write_private


@contextmanager
def between(folder: Path, shown: str, asked: list[str]) -> Iterator[str]:
    """Somebody with an authority of his own, who answers with `shown` to whoever asks whom the fleet comes from."""
    certificate, key = Authority(folder).issue_service(("127.0.0.1",))
    write_private(folder / "service.pem", f"{certificate}{key}".encode())

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(shown.encode())

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer(b"{}")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "service.pem")
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who does not trust it hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_who_adds_an_authority_of_his_own_behind_the_fleets_hears_no_token(tmp_path: Path) -> None:
    genuine, asked = Authority(tmp_path / "genuine"), list[str]()
    shown = genuine.pem + Authority(tmp_path / "between").pem
    with between(tmp_path / "between", shown, asked) as url:
        assert fetch_authority(url, genuine.fingerprint) == genuine.pem
        with pytest.raises(AuthenticationError, match="not trusted"):
            enroll(Home(tmp_path / "home"), url, f"eki_secret.{genuine.fingerprint}", "pi-1", "device")
    assert asked == []
    assert not (tmp_path / "home").exists()


def test_another_authority_than_the_invited_one_is_refused(tmp_path: Path) -> None:
    genuine, asked = Authority(tmp_path / "genuine"), list[str]()
    shown = Authority(tmp_path / "between").pem + genuine.pem
    with (
        between(tmp_path / "between", shown, asked) as url,
        pytest.raises(AuthenticationError, match="not the fleet that made the invitation"),
    ):
        enroll(Home(tmp_path / "home"), url, f"eki_secret.{genuine.fingerprint}", "pi-1", "device")
    assert asked == []


def test_enrolment_that_fails_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    (home.path / "note").write_text("mine")
    with pytest.raises(UsageError, match="no address"):
        enroll(home, "banana", "eki_secret", "pi-1", "device")
    assert (home.path / "note").read_text() == "mine"
    with pytest.raises(UsageError, match="no address"):
        enroll(Home(tmp_path / "fresh"), "banana", "eki_secret", "pi-1", "device")
    assert not (tmp_path / "fresh").exists()
