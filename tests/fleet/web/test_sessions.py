from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from edgekit.fleet.protocol.people import Role
from edgekit.fleet.server.guessing import AT_ONCE, Guesses, SlowGuessing
from edgekit.fleet.server.sessions import MOST_BYTES, SIGNED_IN, VISITING, WORD, place_after
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.sign_ins import LASTS_S, MOST_EACH, UNUSED_S
from edgekit.fleet.store.tables import Base
from edgekit.fleet.trust.tokens import hash_token
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import ADMIN, Visitor, person


def test_a_page_asks_whoever_is_not_signed_in_to_sign_in_and_then_leads_there(stranger: Visitor, token: str) -> None:
    asked = stranger.get("/devices?state=lost")
    assert (asked.status_code, asked.headers["location"]) == (303, "/sign-in?next=%2Fdevices%3Fstate%3Dlost")
    form = stranger.get(asked.headers["location"]).text
    after = re.search(r'name="next" value="([^"]+)"', form)
    assert after is not None and after[1] == "/devices?state=lost"
    assert stranger.sign_in(token, after[1]).headers["location"] == "/devices?state=lost"
    assert stranger.get("/devices?state=lost").status_code == 200


def test_a_wrong_token_signs_nobody_in_and_is_not_shown_again(stranger: Visitor) -> None:
    refused = stranger.sign_in("ekp_wrong-token-of-somebody")
    assert refused.status_code == 401 and "not known" in refused.text
    assert "ekp_wrong-token" not in refused.text
    assert stranger.get("/").status_code == 303


def test_the_cookie_is_for_this_host_alone_and_out_of_reach_of_scripts(stranger: Visitor, token: str) -> None:
    made = [one for one in stranger.sign_in(token).headers.get_list("set-cookie") if one.startswith(SIGNED_IN)]
    words = {word.strip().lower() for word in made[0].split(";")[1:]}
    assert words == {"httponly", "samesite=strict", "path=/"}


def test_under_tls_the_cookie_is_secure_and_bound_to_the_host(app: FastAPI, token: str) -> None:
    with TestClient(app, base_url="https://fleet.example") as client:
        made = [one for one in Visitor(client).sign_in(token).headers.get_list("set-cookie") if SIGNED_IN in one]
    assert made[0].startswith(f"__Host-{SIGNED_IN}=")
    assert {"secure", "httponly", "samesite=strict", "path=/"} == {
        word.strip().lower() for word in made[0].split(";")[1:]
    }


def test_the_key_is_long_new_each_time_and_stored_only_as_a_hash(
    stranger: Visitor, token: str, service: FleetService
) -> None:
    keys = []
    for _ in range(3):
        stranger.sign_in(token)
        keys.append(stranger.http.cookies[SIGNED_IN])
    assert len(set(keys)) == 3 and all(len(key) >= 43 for key in keys)
    with service.database.read() as session:
        stored = repr([session.execute(select(table)).all() for table in Base.metadata.tables.values()])
    assert all(hash_token(key) in stored and key not in stored for key in keys)


def test_a_key_that_somebody_chose_beforehand_opens_nothing(stranger: Visitor, token: str) -> None:
    stranger.http.cookies.set(SIGNED_IN, "c" * 43)
    assert stranger.get("/").status_code == 303
    stranger.http.cookies.clear()
    stranger.sign_in(token)
    assert stranger.http.cookies[SIGNED_IN] != "c" * 43


def test_a_sign_in_ends_after_its_time_however_much_it_is_used(admin: Visitor, clock: SettableClock) -> None:
    for _ in range(int(LASTS_S / 1800) - 1):
        clock.advance(1800)
        assert admin.get("/groups").status_code == 200
    clock.advance(1801)
    assert admin.get("/groups").status_code == 303


def test_a_sign_in_that_nobody_uses_ends_sooner(admin: Visitor, clock: SettableClock) -> None:
    clock.advance(UNUSED_S + 1)
    assert admin.get("/groups").status_code == 303


def test_a_sign_in_ends_with_the_person(somebody: Callable[[Role], Visitor], service: FleetService) -> None:
    viewer = somebody("viewer")
    assert viewer.get("/").status_code == 200
    service.people.remove(ADMIN, "the-viewer")
    assert viewer.get("/").status_code == 303
    person(service, "the-viewer", "viewer")  # another one of the same name
    assert viewer.get("/").status_code == 303


def test_signing_out_ends_it_for_whoever_kept_the_cookie(admin: Visitor) -> None:
    kept = admin.http.cookies[SIGNED_IN]
    assert admin.post("/sign-out").headers["location"] == "/sign-in"
    admin.http.cookies.set(SIGNED_IN, kept)
    assert admin.get("/").status_code == 303


def test_a_person_has_only_so_many_sign_ins_at_once(stranger: Visitor, token: str, service: FleetService) -> None:
    keys = [service.sign_ins.begin(token) for _ in range(MOST_EACH + 2)]
    alive = 0
    for key in keys:
        stranger.http.cookies.set(SIGNED_IN, key)
        alive += stranger.get("/groups").status_code == 200
    assert alive == MOST_EACH


ACTIONS = (
    "/groups", "/groups/pi", "/groups/pi/remove",
    "/rollouts", "/rollouts/latest/pause", "/rollouts/latest/resume", "/rollouts/latest/rollback",
    "/devices/pi-1/labels", "/devices/pi-1/replan", "/devices/pi-1/revoke", "/devices/pi-1/reinstate",
    "/devices/pi-1/remove",
    f"/bundles/{'0' * 64}/remove", "/people", "/people/ada/remove",
    "/invitations", f"/invitations/{'0' * 32}/withdraw", "/sign-out",
)  # fmt: skip


def test_the_list_of_actions_is_whole(app: FastAPI) -> None:
    """So that a form which is added later is tested too."""
    from edgekit.fleet.server.pages import router

    def paths(routes: list) -> set[str]:
        found = set()
        for route in routes:
            if "POST" in (getattr(route, "methods", None) or ()):
                found.add(route.path)
            inner = getattr(route, "original_router", None)
            if inner is not None:
                found |= paths(inner.routes)
        return found

    shape = {re.sub(r"/(pi|latest|pi-1|ada|0{32,64})(/|$)", r"/{}\2", one) for one in ACTIONS}
    assert {re.sub(r"\{\w+\}", "{}", one) for one in paths(router.routes)} == shape | {"/sign-in"}


def test_a_form_without_its_word_or_with_another_is_refused(admin: Visitor, service: FleetService) -> None:
    before = service.core.events().items
    for path in ACTIONS:
        for word in ("", "0" * 64):
            refused = admin.post(path, {"name": "x"}, word=word)
            assert refused.status_code == 403 and "not of this sign-in" in refused.text, path
    assert service.core.events().items == before


def test_the_word_of_another_sign_in_does_not_count(admin: Visitor, somebody: Callable[[Role], Visitor]) -> None:
    other = somebody("admin")
    assert other.word() != admin.word()
    assert admin.post("/groups", {"name": "pi"}, word=other.word()).status_code == 403


def test_signing_in_needs_the_word_of_the_form_that_this_browser_was_sent(stranger: Visitor, token: str) -> None:
    word = stranger.word("/sign-in")
    stranger.http.cookies.delete(VISITING)
    assert stranger.post("/sign-in", {"token": token}, word=word).status_code == 403
    assert stranger.get("/").status_code == 303


def test_a_form_from_another_site_is_refused_even_with_its_word(admin: Visitor) -> None:
    word = admin.word()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://127.0.0.1:9"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        refused = admin.post("/groups", {"name": "pi", "selector": ""}, word=word, headers=headers)
        assert refused.status_code == 403 and "another site" in refused.text, headers
    sent = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert admin.post("/groups", {"name": "pi", "selector": ""}, word=word, headers=sent).status_code == 303


def test_what_is_no_form_is_refused_without_a_trace(admin: Visitor) -> None:
    word = admin.word()
    json = admin.http.post("/groups", json={WORD: word, "name": "pi"}, follow_redirects=False)
    assert json.status_code == 400
    for body in (b"\xff=%ff", b"&".join(b"a%d=1" % i for i in range(200))):
        sent = admin.http.post("/groups", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert sent.status_code == 400 and "no form" in sent.text
    long = admin.post("/groups", {"name": "x" * (MOST_BYTES + 1)}, word=word)
    assert long.status_code == 400 and "bytes" in long.text


def test_wrong_tokens_are_answered_ever_more_slowly_and_told_on_a_page(
    app: FastAPI, stranger: Visitor, token: str
) -> None:
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    door = Visitor(TestClient(SlowGuessing(app, guesses), base_url="http://127.0.0.1"))
    word = door.word("/sign-in")
    answers = [door.post("/sign-in", {"token": f"ekp_{place}"}, word=word) for place in range(int(AT_ONCE) + 3)]
    assert [one.status_code for one in answers] == [401] * int(AT_ONCE) + [429] * 3
    refused = door.post("/sign-in", {"token": token}, word=word)
    assert refused.status_code == 429 and "too many tokens" in refused.text and "<h1>" in refused.text
    assert "frame-ancestors 'none'" in refused.headers["content-security-policy"]
    now[0] += float(refused.headers["retry-after"])
    assert door.post("/sign-in", {"token": token}, word=word).status_code == 303
    door.http.close()


ELSEWHERE = (
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "\t//evil.example",
    "/\r\nLocation: https://evil.example",
    " //evil.example",
    "javascript:alert(1)",
    "evil.example",
    "",
)


@pytest.mark.parametrize("wanted", ELSEWHERE)
def test_no_place_after_signing_in_is_elsewhere(wanted: str) -> None:
    assert place_after(wanted) == "/"


def test_signing_in_leads_nowhere_else(stranger: Visitor, token: str) -> None:
    for wanted in ELSEWHERE[:4]:
        assert stranger.sign_in(token, wanted).headers["location"] == "/"
        assert 'name="next" value="/"' in stranger.get("/sign-in", params={"next": wanted}).text


def test_a_path_with_a_query_is_a_place_to_go_on() -> None:
    assert place_after("/devices?selector=a%3Db&after=pi-1") == "/devices?selector=a%3Db&after=pi-1"
