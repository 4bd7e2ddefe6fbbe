from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import update

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.insights import Finding
from edgekit.fleet.protocol.people import Role
from edgekit.fleet.service import FleetService
from edgekit.fleet.store.tables import BundleRow, Device, Event
from edgekit.fleet.store.tables import Finding as FindingRow
from edgekit.fleet.telemetry.histogram import histogram_of, percentile
from edgekit.fleet.web.wording import number
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import ADMIN, Visitor, enroll, follow, group, push, say, window

NASTY = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"""


def names(text: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/devices/([^"]+)"', text)


def test_the_overview_counts_devices_by_state_and_draws_each(
    admin: Visitor, service: FleetService, tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(service, tmp_path).digest
    devices = [enroll(service, f"pi-{place}", board="rpi4") for place in range(4)]
    enroll(service, "loose-1", board="other")
    group(service)
    with service.database.write() as session:
        session.execute(update(Device).where(Device.id.in_(devices)).values(wanted=digest, seen_at=clock()))
    say(service, devices[0], Slot(running=digest, checked=4, right=4))
    say(service, devices[1], Slot(candidate=digest, phase="failed", reason="answers are wrong"))
    say(service, devices[2], Slot(candidate=digest, phase="downloading"))
    service.glances.forget()
    text = admin.get("/").text
    tiles = dict(re.findall(r"<dt>([^<]+)</dt><dd class=\"value\"><a[^>]*>([\d,]+)</a>", text))
    assert tiles == {"Devices": "5", "Run what they should": "1", "Refused a bundle": "1", "Not heard of": "1"}
    cells = re.findall(r'href="/devices/([^"]+)" tabindex="-1"><title>[^<]+</title><path class="s-([a-z]+)"', text)
    assert dict(cells) == {"pi-0": "right", "pi-1": "failed", "pi-2": "moving", "pi-3": "moving", "loose-1": "lost"}


def test_devices_are_found_by_part_of_a_name_by_labels_and_by_state(admin: Visitor, service: FleetService) -> None:
    for place in range(3):
        enroll(service, f"pi-{place}", board="rpi4", site="lab" if place else "plant")
    enroll(service, "jetson-1", board="orin")
    assert names(admin.get("/devices").text) == ["jetson-1", "pi-0", "pi-1", "pi-2"]
    assert names(admin.get("/devices?name=PI").text) == ["pi-0", "pi-1", "pi-2"]
    assert names(admin.get("/devices?selector=board%3Drpi4,site%3Dlab").text) == ["pi-1", "pi-2"]
    assert names(admin.get("/devices?state=right").text) == []
    assert names(admin.get("/devices?name=pi&state=lost&selector=site%3Dplant").text) == ["pi-0"]
    refused = admin.get("/devices?selector=site%3D%3Dlab")
    assert refused.status_code == 400 and "selector term" in refused.text


def test_pages_of_devices_show_each_once_and_keep_the_search(
    admin: Visitor, service: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.fleet.server.pages import devices as pages

    monkeypatch.setattr(pages, "ROWS", 2)
    for place in range(5):
        enroll(service, f"pi-{place}", board="rpi4")
    enroll(service, "other", board="orin")
    path, seen = "/devices?selector=board%3Drpi4", []
    for _ in range(5):
        text = admin.get(path).text
        seen += names(text)
        following = re.search(r'href="([^"]+)" rel="next"', text)
        if following is None:
            break
        path = unescape(following[1])
        assert "selector=board%3Drpi4" in path
    assert seen == [f"pi-{place}" for place in range(5)]


def test_a_device_is_shown_over_time_with_the_change_of_its_bundle_marked(
    admin: Visitor, service: FleetService, clock: SettableClock, tmp_path: Path, token: str
) -> None:
    old, new = push(service, tmp_path, scale=2.0).digest, push(service, tmp_path, scale=3.0).digest
    device = enroll(service, "pi-1")
    windows = [window(place, clock() - 60 * (40 - place), old if place < 20 else new, 20.0) for place in range(40)]
    say(service, device, Slot(running=new, checked=4, right=3), *windows)
    text = admin.get("/devices/pi-1").text
    assert re.findall(r"<figcaption><b>([^<]+)</b>", text) == [
        "Latency", "Requests", "Not as planned", "Link: bandwidth", "Link: round trip", "Temperature", "Power"
    ]  # fmt: skip
    assert "3 of 4 right" in text and 'aria-current="true">1 h' in text
    assert re.findall(r"<ol class=\"marks\"><li>answers with net (\w+),", text) == [new[:12]]
    assert text.count("<title>answers with net") == 7  # in every chart
    said = number(percentile(histogram_of([20.0]), 0.5), "ms")
    assert f"p50 {said}, p95 {said}" in text
    assert "bandwidth 12.5 Mbit/s" in text and "temperature 61.5 °C" in text and "errors 0.99 %" in text
    assert admin.get("/devices/pi-1?hours=0").status_code == 400
    clock.advance(7 * 86_400)
    admin.sign_in(token)
    assert "Nothing was heard of it in the last 6 h" in admin.get("/devices/pi-1").text


def test_what_sets_a_device_apart_is_shown_with_the_evidence(
    admin: Visitor, service: FleetService, clock: SettableClock
) -> None:
    device = enroll(service, "pi-1")
    shared = {"device": device, "name": "pi-1", "digest": "a" * 64, "since": clock(), "at": clock()}
    odd = Finding(
        kind="suspect", metric="p95", value=80.0, usual=20.0, score=9.0, peers=12, text="its p95 is 80 ms <b>", **shared
    )
    changed = Finding(
        kind="drift", metric="inputs", value=0.4, usual=0.2, score=2.0, samples=900, text="its inputs have changed",
        before=(0.5, 0.5, 0.0), now=(0.1, 0.1, 0.8), edges=(1.0, 2.0), **shared,
    )  # fmt: skip
    keep(service, odd, changed)
    for path in ("/devices/pi-1", "/findings"):
        text = admin.get(path).text
        assert text.index("its p95 is 80 ms &lt;b&gt;") < text.index("its inputs have changed")
        assert "9 spreads from 12 peers" in text and "2 times as much as its limit" in text
        assert "<title>over 2: 0 % at first, 80 % now</title>" in text
    assert "inputs have" not in admin.get("/findings?kind=suspect").text
    assert "1 device unlike its peers" in admin.get("/").text


def keep(service: FleetService, *found: Finding) -> None:
    with service.database.write() as session:
        for one in found:
            session.add(
                FindingRow(
                    device=one.device, kind=one.kind, metric=one.metric, digest=one.digest, score=one.score,
                    since=one.since, at=one.at, content=one.model_dump(mode="json"),
                )
            )  # fmt: skip


def test_a_rollout_is_started_paused_resumed_and_rolled_back_by_forms(
    admin: Visitor, service: FleetService, tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(service, tmp_path).digest
    devices = [enroll(service, f"pi-{place}", board="rpi4") for place in range(4)]
    group(service)
    follow(service, *devices)
    fields = {"bundle": digest, "group": "pi", "steps": "25%, 100%", "guards": "", "soak_s": "0", "window": "2"}
    place = admin.post("/rollouts", fields).headers["location"]
    order = service.rollouts.get("latest").order
    assert order.steps == (0.25, 1.0) and order.soak_s == 0.0 and order.window == 2
    service.rollouts.advance()
    clock.advance(1)
    follow(service, *devices)
    service.rollouts.advance()
    text = admin.get(place).text
    assert "under way" in text and "1 of 1 right" in text and "0 of 3 right" in text
    assert admin.post(f"{place}/pause").headers["location"] == place
    assert "paused by admin" in admin.get(place).text and 'id="resume"' in admin.get(place).text
    assert admin.post(f"{place}/resume").status_code == 303
    assert service.rollouts.get("latest").state == "running"
    assert admin.post(f"{place}/rollback").status_code == 303
    assert "rolling back" in admin.get(place).text
    again = admin.post(f"{place}/pause")
    assert again.status_code == 409 and "rolling-back" in again.text


def test_who_failed_in_a_rollout_is_named_with_the_reason(
    admin: Visitor, service: FleetService, tmp_path: Path, clock: SettableClock
) -> None:
    digest = push(service, tmp_path).digest
    devices = [enroll(service, f"pi-{place}", board="rpi4") for place in range(2)]
    group(service)
    follow(service, *devices)
    fields = {"bundle": digest, "group": "pi", "steps": "100%", "soak_s": "0", "max_wrong": "1"}
    place = admin.post("/rollouts", fields).headers["location"]
    service.rollouts.advance()
    clock.advance(1)
    say(service, devices[1], Slot(candidate=digest, phase="failed", reason="3 golden answers differ"))
    service.rollouts.advance()
    text = admin.get(place).text
    failed = re.search(r'<a href="/devices/(pi-\d)">pi-\d</a></th><td>wrong</td><td class="long">([^<]+)<', text)
    assert failed is not None and failed.groups() == ("pi-1", "3 golden answers differ")


def test_a_form_that_is_refused_comes_back_with_what_was_typed_and_why(
    admin: Visitor, service: FleetService, tmp_path: Path
) -> None:
    digest = push(service, tmp_path).digest
    enroll(service, "pi-1", board="rpi4")
    group(service)
    fields = {"bundle": digest, "group": "pi", "steps": "25%, 100%", "guards": "p95<=80kg", "soak_s": "12"}
    refused = admin.post("/rollouts", fields)
    assert refused.status_code == 400 and 'role="alert"' in refused.text
    typed = dict(re.findall(r'name="(\w+)"[^>]* value="([^"]*)"', refused.text))
    assert unescape(typed["guards"]) == "p95<=80kg" and typed["soak_s"] == "12" and typed["steps"] == "25%, 100%"
    assert f'value="{digest}" selected' in refused.text and 'value="pi" selected' in refused.text
    for fields in (
        {"name": "Not A Name", "selector": ""},
        {"name": "ok", "selector": "a==b"},
        {"name": "ok", "selector": "", "interval_s": "soon"},
        {"name": "ok", "selector": "", "interval_s": "0"},
        {"name": "ok", "selector": "", "interval_s": "nan"},
        {"name": "ok", "selector": "", "compare_share": "120%"},
    ):
        again = admin.post("/groups", fields)
        assert again.status_code == 400 and 'role="alert"' in again.text, fields
        assert 'name="name" required maxlength="63"' in again.text and f'value="{fields["name"]}"' in again.text
    assert admin.post("/groups", {"name": "pi", "selector": ""}).status_code == 409  # there is one
    assert [one.view.name for one in service.glances.now().groups] == ["pi"]


def test_a_form_that_was_filled_in_before_somebody_elses_change_does_not_undo_it(
    admin: Visitor, service: FleetService
) -> None:
    enroll(service, "pi-1")
    group(service)
    stale = service.devices.get("pi-1").version
    assert admin.post("/devices/pi-1/labels", {"labels": "a=1", "version": str(stale)}).status_code == 303
    late = admin.post("/devices/pi-1/labels", {"labels": "a=2", "version": str(stale)})
    assert late.status_code == 409 and 'value="a=2"' in late.text
    assert service.devices.get("pi-1").labels == {"a": "1"}


def test_a_device_is_revoked_reinstated_and_removed(admin: Visitor, service: FleetService) -> None:
    enroll(service, "pi-1")
    assert admin.post("/devices/pi-1/revoke").headers["location"] == "/devices/pi-1"
    assert "revoked" in admin.get("/devices/pi-1").text and names(admin.get("/devices?state=revoked").text) == ["pi-1"]
    assert admin.post("/devices/pi-1/reinstate").status_code == 303
    assert service.devices.get("pi-1").standing == "active"
    assert admin.post("/devices/pi-1/remove").headers["location"] == "/devices"
    assert admin.get("/devices/pi-1").status_code == 404


def test_a_person_may_be_added_for_some_days_and_the_page_tells_till_when(
    admin: Visitor, service: FleetService, clock: SettableClock
) -> None:
    assert admin.post("/people", {"name": "ada", "role": "viewer", "days": "2"}).status_code == 200
    assert admin.post("/people", {"name": "bob", "role": "viewer", "days": " "}).status_code == 200
    ends = {one.name: one.ends_at for one in service.people.all()}
    assert ends["ada"] == pytest.approx(clock() + 2 * 86_400, abs=5.0) and ends["bob"] is None
    ada, bob = re.findall(r'<th scope="row">(?:ada|bob)</th>.*', admin.get("/people").text)
    assert re.search(r"in \d+ [hd]", ada) and "<td>\N{EN DASH}</td>" in bob
    for days in ("0", "-1", "nan", "4000", "a week"):
        refused = admin.post("/people", {"name": "eve", "role": "viewer", "days": days})
        assert refused.status_code == 400 and "days" in unescape(refused.text), days
    refused = admin.post("/invitations", {"hours": "0"})
    assert refused.status_code == 400 and "hours 0, allowed above 0 up to 8760" in unescape(refused.text)


def test_tokens_are_told_once_and_work(
    admin: Visitor, service: FleetService, somebody: Callable[[Role], Visitor]
) -> None:
    made = admin.post("/people", {"name": "ada", "role": "viewer"})
    token = re.search(r"ekp_[\w-]+", made.text)
    assert made.status_code == 200 and token is not None
    assert token[0] not in admin.get("/people").text + admin.get("/audit").text
    assert service.people.identify(token[0]).role == "viewer"
    invited = admin.post("/invitations", {"labels": "board=rpi4, site=lab", "uses": "2", "hours": "1"})
    assert re.search(r"eki_[\w-]+", invited.text) and "board=rpi4, site=lab" in invited.text
    identifier = service.invitations.open()[0].id
    assert admin.post(f"/invitations/{identifier}/withdraw").status_code == 303
    assert service.invitations.open() == ()
    assert admin.post("/people/ada/remove").headers["location"] == "/people"
    assert admin.post("/people/admin/remove").status_code == 409  # the last admin


def test_a_click_on_the_map_leads_to_the_device_of_that_cell(admin: Visitor, service: FleetService) -> None:
    for place in range(3):
        enroll(service, f"pi-{place}", board="rpi4")
    group(service)
    assert admin.get("/groups/pi/at/2").headers["location"] == "/devices/pi-2"
    assert admin.get("/groups/pi/at/3").status_code == 404


def test_whatever_others_wrote_is_shown_as_text(
    admin: Visitor, service: FleetService, tmp_path: Path, clock: SettableClock
) -> None:
    """Names and labels are held to harmless letters where they come in; here they get past that, by the database."""
    digest = push(service, tmp_path).digest
    device = enroll(service, "pi-1", system=NASTY, board="rpi4")
    group(service)
    seen = window(0, clock() - 60, digest, plan=NASTY)
    say(service, device, Slot(candidate=digest, phase="failed", reason=NASTY), seen, window(1, clock() - 50, "a" * 64))
    rollout = admin.post("/rollouts", {"bundle": digest, "group": "pi", "steps": "100%"}).headers["location"]
    service.rollouts.advance()
    clock.advance(1)
    say(service, device, Slot(candidate=digest, phase="failed", reason=NASTY), seen)
    service.rollouts.advance()
    with service.database.write() as session:
        session.execute(update(Device).where(Device.id == device).values(name=NASTY[:63]))
        session.execute(update(BundleRow).values(name=NASTY, task=NASTY, device=NASTY[:64], pushed_by=NASTY[:63]))
        session.add(Event(at=clock(), actor=NASTY[:100], action="x", subject=NASTY, detail={"why": NASTY}))
    service.glances.forget()
    paths = ["/", "/groups", "/groups/pi", "/devices", f"/devices/{device}", "/rollouts", rollout, "/rollouts/new",
             "/bundles", f"/bundles/{digest}", "/audit", "/people", "/invitations"]  # fmt: skip
    shown = ""
    for path in paths:
        answer = admin.get(path)
        assert answer.status_code == 200, path
        assert (
            "<script>alert" not in answer.text
            and "<img" not in answer.text
            and "49" not in re.findall(r">49<", answer.text)
        )
        shown += answer.text
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    asked = (
        f"/devices?name={NASTY[:60]}", f"/devices?selector={NASTY}", f"/devices/{NASTY[:60]}", f"/groups/{NASTY}",
        f"/audit?subject={NASTY}", f"/sign-in?next=/{NASTY}",
    )  # fmt: skip
    for path in asked:
        answer = admin.get(path)
        assert "<script>alert" not in answer.text and "<img" not in answer.text
    assert "<script>alert" not in admin.post("/groups", {"name": NASTY, "selector": NASTY}).text


def test_the_audit_log_is_read_page_by_page_and_of_one_thing(
    admin: Visitor, service: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.fleet.server.pages import overview

    monkeypatch.setattr(overview, "EVENTS", 3)
    for place in range(4):
        enroll(service, f"pi-{place}")
    path, seen = "/audit", 0
    for _ in range(10):
        text = admin.get(path).text
        seen += text.count('<td class="when">')
        older = re.search(r'href="([^"]+)" rel="next"', text)
        if older is None:
            break
        path = unescape(older[1])
    assert seen == len(service.core.events(None, 100).items)
    assert admin.get("/audit?subject=pi-2").text.count('<td class="when">') == 1


def test_what_is_not_there_is_said_on_a_page(admin: Visitor) -> None:
    for path in ("/devices/nobody", "/groups/nobody", "/rollouts/abcdef", f"/bundles/{'0' * 64}",
                 f"/bundles/{'0' * 64}/report"):  # fmt: skip
        answer = admin.get(path)
        assert answer.status_code == 404 and "That did not work" in answer.text and ADMIN.name not in answer.text
    assert admin.get("/rollouts/latest").status_code == 404


def test_a_path_that_is_none_is_a_page_for_browsers_and_a_problem_for_programs(admin: Visitor) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = admin.get("/grups", headers=browser)
    assert page.status_code == 404 and "no such page" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for path, headers in (("/grups", {}), ("/v1/grups", browser)):
        assert admin.get(path, headers=headers).json()["error"] == "Not Found"
