from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import ADMIN, Visitor, enroll, follow, group, push, say, window

STRICT = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture
def pages(admin: Visitor, service: FleetService, tmp_path: Path, clock: SettableClock) -> dict[str, str]:
    """Path -> its HTML, of every page with something on it."""
    bundle = push(service, tmp_path)
    device = enroll(service, "pi-1", board="rpi4")
    group(service)
    rollout = service.rollouts.start(ADMIN, RolloutOrder(bundle=bundle.digest, group="pi", guards="errors<=1%"))
    service.rollouts.advance()
    follow(service, device)
    say(service, device, Slot(running=bundle.digest, checked=4, right=4), window(0, clock() - 60, bundle.digest))
    service.rollouts.advance()
    paths = [
        "/", "/findings", "/groups", "/groups/pi", "/devices", "/devices/pi-1", "/rollouts", "/rollouts/new",
        f"/rollouts/{rollout.id}", "/bundles", f"/bundles/{bundle.digest}", "/audit", "/people", "/invitations",
        "/sign-in", "/groups/nope",
    ]  # fmt: skip
    return {path: admin.get(path).text for path in paths}


def test_every_page_bears_strict_headers_whatever_it_answers(admin: Visitor) -> None:
    answers = [admin.get(path) for path in ("/", "/sign-in", "/groups/nope", "/devices?state=nonsense")]
    answers += [admin.post("/groups", {}, word="x"), admin.post("/groups", {"name": "A B"})]
    admin.http.cookies.clear()
    answers.append(admin.get("/"))
    assert [one.status_code for one in answers] == [200, 200, 404, 400, 403, 400, 303]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in STRICT} == STRICT
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert "unsafe" not in str(policy)


def test_no_page_holds_script_or_style_of_its_own_nor_fetches_from_elsewhere(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        fetched = re.findall(r'(?:src|href|action)="([^"]*)"', text)
        assert all(one.startswith(("/", "#", "data:,")) and not one.startswith("//") for one in fetched), path


def test_every_field_has_a_label_every_table_a_caption_and_every_picture_words(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        ids = set(re.findall(r'<label for="([^"]+)"', text))
        fields = re.findall(r"<(?:input|select)\b[^>]*>", text)
        for field in fields:
            if 'type="hidden"' not in field:
                named = re.search(r'id="([^"]+)"', field)
                assert named and named[1] in ids, (path, field)
        assert text.count("<table") == text.count("<caption"), path
        assert all("aria-label=" in one for one in re.findall(r"<svg\b[^>]*>", text)), path
        assert text.count("<h1") == 1 and text.count("<main") == 1 and '<html lang="en">' in text, path
        found = re.findall(r'\sid="([^"]+)"', text)
        assert len(found) == len(set(found)), path


def test_every_form_that_changes_something_carries_its_word(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        for form in re.findall(r'<form method="post".*?</form>|<form id="turn".*?</form>', text, re.S):
            assert re.search(r'name="word" value="[0-9a-f]{96}"', form), path


def test_static_files_are_kept_for_ever_under_the_hash_of_their_content(admin: Visitor) -> None:
    for path in re.findall(r'"(/static/[^"]+)"', admin.get("/").text):
        answer = admin.get(path)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
    for path in ("/static/page.css", "/static/..%2f__init__.py", "/static/%2e%2e/templates/base.html"):
        assert admin.get(path).status_code == 404


def test_a_report_runs_nothing_reaches_nothing_and_is_framed_by_this_page_alone(
    admin: Visitor, service: FleetService, tmp_path: Path
) -> None:
    digest = push(service, tmp_path).digest
    page = admin.get(f"/bundles/{digest}").text
    frame = re.search(r"<iframe[^>]*>", page)
    assert frame is not None and 'sandbox=""' in frame[0]
    report = admin.get(f"/bundles/{digest}/report")
    policy = report.headers["content-security-policy"]
    assert "report of net" in report.text
    assert "sandbox" in policy.split("; ") and "default-src 'none'" in policy and "frame-ancestors 'self'" in policy
    assert report.headers["x-frame-options"] == "SAMEORIGIN" and "script" not in policy
    admin.http.cookies.clear()
    assert admin.get(f"/bundles/{digest}/report").status_code == 303


def test_the_api_description_does_not_know_the_page(app: FastAPI) -> None:
    assert all(path.startswith("/v1/") or path == "/metrics" for path in app.openapi()["paths"])


def test_a_bearer_token_opens_no_page_and_a_cookie_no_api(stranger: Visitor, token: str) -> None:
    assert stranger.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 303
    stranger.sign_in(token)
    assert stranger.get("/v1/devices").status_code == 401


def test_a_page_is_compressed_for_who_takes_it_and_its_words_are_others_each_time(admin: Visitor) -> None:
    plain = admin.get("/groups", headers={"Accept-Encoding": "identity"})
    small = admin.get("/groups", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers and small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) < len(plain.content) / 2
    words = [re.findall(r'name="word" value="(\w+)"', one.text)[0] for one in (plain, small)]
    assert len(set(words)) == 2
    for word in words:
        assert admin.post("/groups", {"name": f"g-{word[:8]}", "selector": ""}, word=word).status_code == 303
    told = admin.post("/people", {"name": "ada", "role": "viewer"}, headers={"Accept-Encoding": "gzip"})
    assert "ekp_" in told.text and "content-encoding" not in told.headers
