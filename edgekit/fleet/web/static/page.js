// Live updates, and clicks on large maps. Everything else works without.
"use strict";

const parts = () => Array.from(document.querySelectorAll("[data-part]"));
const said = document.getElementById("live");
let source = null;

function say(text, on) {
  if (!said || said.textContent === text) return;
  said.textContent = text;
  said.toggleAttribute("data-on", on);
}

// What the reader has opened, and where the keyboard is, stays.
function put(place, mark, html) {
  const open = Array.from(place.querySelectorAll("details[open][id]"), (one) => one.id);
  const held = place.contains(document.activeElement) ? document.activeElement : null;
  const again = held && (held.id ? "#" + CSS.escape(held.id) : held.getAttribute("href") && `a[href="${CSS.escape(held.getAttribute("href"))}"]`);
  const scrolled = Array.from(place.querySelectorAll(".scroll"), (one) => one.scrollLeft);
  place.innerHTML = html;
  place.dataset.mark = mark;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  place.querySelectorAll(".scroll").forEach((one, at) => { one.scrollLeft = scrolled[at] || 0; });
  if (again) place.querySelector(again)?.focus({ preventScroll: true });
}

function listen() {
  if (source || document.hidden || !parts().length) return;
  const address = new URL(location.href);
  address.hash = "";
  address.searchParams.set("marks", parts().map((one) => one.dataset.mark).join(","));
  source = new EventSource(address);
  source.addEventListener("open", () => say("live", true));
  source.addEventListener("parts", (event) => {
    for (const [name, [mark, html]] of Object.entries(JSON.parse(event.data))) {
      const place = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
      if (place) put(place, mark, html);
    }
  });
  source.addEventListener("over", () => { stop(); say("signed out", false); });
  source.addEventListener("error", () => {
    say("not live", false);
    if (source && source.readyState === EventSource.CLOSED) { stop(); setTimeout(listen, 15000); }
  });
}

function stop() {
  if (source) source.close();
  source = null;
}

// A browser opens only a few connections to one host: pages that nobody sees give theirs back.
document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); else listen(); });
addEventListener("pagehide", stop);
addEventListener("pageshow", listen);

document.addEventListener("click", (event) => {
  const map = event.target.closest("svg[data-at]");
  if (!map) return;
  const box = map.getBoundingClientRect();
  const columns = Number(map.dataset.columns);
  const size = box.width / columns;
  const place = Math.floor((event.clientY - box.top) / size) * columns + Math.floor((event.clientX - box.left) / size);
  if (place >= 0 && place < Number(map.dataset.cells)) location.assign(map.dataset.at + place);
});
