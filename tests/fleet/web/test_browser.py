"""The page in a real Chromium, over a real server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.people import InvitationOrder
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.runtimes.listening import open_socket
from tests.fleet.web.scene import ADMIN, enroll, follow, group, push, say, window

playwright = pytest.importorskip(
    "playwright.sync_api", reason='playwright is not installed: pip install "edgekit[dev]"'
)
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium (Debian: apt-get install chromium)")
WAIT_MS = 20_000


@dataclass
class Scene:
    """A few simulated devices behind a real service: `follow` is what their agents would say."""

    url: str
    token: str
    service: FleetService
    digest: str
    devices: list[str]

    def advance(self) -> None:
        """The devices do as they are told, until nothing moves."""
        self.service.rollouts.advance()
        time.sleep(0.01)  # what a device says counts from behind the moment it was asked
        follow(self.service, *self.devices)
        self.service.rollouts.advance()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("page")
    service = FleetService(folder / "data")
    token = service.people.found()
    assert token is not None
    digest = push(service, folder).digest
    devices = [enroll(service, f"pi-{place:02}", board="rpi4", site="lab") for place in range(6)]
    group(service)
    follow(service, *devices)
    now = time.time()
    windows = [window(place, now - 60 * (60 - place), digest, 20.0 + place % 7) for place in range(60)]
    say(service, devices[0], Slot(), *windows)
    server = make_server(service, Listening(port=0))
    with open_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield Scene(f"http://127.0.0.1:{listener.getsockname()[1]}", token, service, digest, devices)
        server.should_exit = True
        thread.join(20)
    service.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A window of its own. What the browser complains of fails the test at its end."""

    def __init__(self, browser: object, scene: Scene, **settings: object) -> None:
        self.scene = scene
        self.context = browser.new_context(base_url=scene.url, **settings)  # type: ignore[attr-defined]
        self.window = self.context.new_page()
        self.window.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.window.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.window.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)

    def sign_in(self) -> None:
        """By keyboard alone: the field has the focus."""
        self.window.goto("/sign-in")
        self.window.wait_for_selector("#token:focus")
        self.window.keyboard.type(self.scene.token)
        self.window.keyboard.press("Enter")
        self.window.wait_for_url("**/")

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []


@pytest.fixture
def page(browser: object, scene: Scene) -> Iterator[Page]:
    made = Page(browser, scene)
    made.sign_in()
    yield made
    made.close()


def test_every_page_is_reached_by_keyboard_and_shows_where_the_focus_is(page: Page) -> None:
    window = page.window
    names = ["Overview", "Groups", "Devices", "Findings", "Rollouts", "Bundles", "Audit log", "Invitations", "People"]
    for name in names:
        for _ in range(20):
            window.keyboard.press("Tab")
            if window.evaluate("document.activeElement.textContent.trim()") == name:
                break
        style = window.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style not in ("none", ""), name
        window.keyboard.press("Enter")
        window.wait_for_selector(f'nav a[aria-current=page]:text-is("{name}")')
        assert window.locator("h1").count() == 1
    window.goto("/devices")
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.className") == "skip"
    window.keyboard.press("Enter")
    assert window.evaluate("document.activeElement.id") == "main"


def test_a_rollout_is_started_paused_resumed_and_rolled_back_while_its_page_follows_live(page: Page) -> None:
    window, scene = page.window, page.scene
    window.goto("/rollouts/new")
    window.select_option("#bundle", scene.digest)
    window.select_option("#group", "pi")
    window.fill("#steps", "30%, 100%")
    window.fill("#guards", "")
    window.fill("#soak_s", "0.1")
    window.press("#soak_s", "Enter")
    window.wait_for_url(re.compile("/rollouts/[0-9a-f]{32}"))
    window.wait_for_selector("#live[data-on]")
    window.click("#pause")
    window.wait_for_selector(".tag:text-is('paused')")
    window.focus("#resume")
    window.keyboard.press("Enter")
    window.wait_for_selector(".tag:text-is('under way')")
    window.wait_for_selector("#live[data-on]")
    for _ in range(40):  # the page is not touched: what it shows comes by itself
        scene.advance()
        if scene.service.rollouts.get("latest").state == "complete":
            break
        time.sleep(0.05)
    window.wait_for_selector(".tag:text-is('complete')")
    window.wait_for_selector("text=4 of 4 right")
    window.click("text=Roll back…")
    window.click("#rollback")
    window.wait_for_selector(".tag:text-is('rolling back')")
    for _ in range(10):
        scene.advance()
    window.wait_for_selector(".tag:text-is('rolled back')")
    assert scene.service.rollouts.get("latest").state == "rolled-back"


def test_what_is_opened_and_where_the_focus_is_survives_a_live_update(page: Page) -> None:
    shown, scene = page.window, page.scene
    shown.goto("/devices/pi-00")
    shown.wait_for_selector("#live[data-on]")
    shown.click("summary:text-is('The same in numbers')")
    shown.focus("#numbers summary")
    before = shown.get_attribute("[data-part=charts]", "data-mark")
    say(scene.service, scene.devices[0], Slot(), window(60, time.time() - 1, scene.digest, 400.0))
    shown.wait_for_selector(f"[data-part=charts]:not([data-mark='{before}'])")
    assert shown.evaluate("document.getElementById('numbers').open")
    assert shown.evaluate("document.activeElement.textContent") == "The same in numbers"


def test_pages_fit_and_read_well_light_and_dark_wide_and_narrow(browser: object, scene: Scene, tmp_path: Path) -> None:
    rollout = scene.service.rollouts.list().items
    scene.service.devices.invite(ADMIN, InvitationOrder(labels={"board": "rpi4", "site": "a-plant-far-away"}))
    paths = ["/", "/findings", "/groups", "/groups/pi", "/devices", "/devices/pi-00", "/rollouts", "/rollouts/new",
             "/bundles", f"/bundles/{scene.digest}", "/audit", "/people", "/invitations"]  # fmt: skip
    paths += [f"/rollouts/{one.id}" for one in rollout[:1]]
    for scheme, width in (("light", 390), ("dark", 1280)):
        page = Page(browser, scene, color_scheme=scheme, viewport={"width": width, "height": 844})
        page.sign_in()
        for path in paths:
            page.window.goto(path)
            wide = page.window.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, scheme, width)
            assert page.window.evaluate(CONTRAST) == [], (path, scheme, width)
        shot = page.window.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        assert len(shot) > 5_000
        page.close()


def test_without_script_everything_but_live_updates_works(browser: object, scene: Scene) -> None:
    page = Page(browser, scene, java_script_enabled=False)
    page.sign_in()
    page.window.goto("/groups")
    page.window.fill("#name", "by-hand")
    page.window.fill("#selector", "site=lab")
    page.window.press("#selector", "Enter")
    page.window.wait_for_url("**/groups/by-hand")
    page.window.click("summary:text-is('Remove the group…')")
    page.window.click("button:text-is('Remove by-hand')")
    page.window.wait_for_url("**/groups")
    assert page.window.locator("text=by-hand").count() == 0
    page.close()


def test_a_report_is_shown_within_the_page_of_its_bundle(page: Page) -> None:
    window = page.window
    window.goto(f"/bundles/{page.scene.digest}")
    frame = window.frame_locator("iframe.report")
    assert "report of net" in frame.locator("p").inner_text()


# Texts whose colours are nearer to their background than WCAG 2 allows (4.5 to 1, large ones 3 to 1).
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const found = parse(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return parse(getComputedStyle(document.body).backgroundColor);
  };
  const bad = [];
  for (const one of document.querySelectorAll("main *, header *")) {
    const own = [...one.childNodes].filter((node) => node.nodeType === 3);
    const text = own.map((node) => node.textContent.trim()).join("");
    if (!text || one.closest(".hidden, .skip, option, title, iframe")) continue;
    const style = getComputedStyle(one);
    const front = light(parse(one.closest("svg") ? style.fill : style.color)), back = light(behind(one));
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < least) bad.push([text.slice(0, 40), ratio]);
  }
  return bad;
}"""
