"""A fleet as rows, put into a database directly: devices in groups, two rollouts, windows of every device."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from sqlalchemy import insert

from edgekit.fleet.protocol.agents import Facts, Slot
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.service import FleetService
from edgekit.fleet.store.tables import BundleRow, Device, Event, Group, Rollout, RolloutDevice, WindowRow
from edgekit.fleet.telemetry.histogram import histogram_of

WINDOW_S = 60.0
INTERVAL_S = 3600.0  # no agent runs: the devices stay connected while pages are measured
CHUNK = 5_000
GROUPS = 12
TEMPLATES = 400
# State of a device -> how often. What a fleet looks like in the middle of a rollout on a bad day.
STATES = {"right": 0.93, "moving": 0.03, "failed": 0.01, "lost": 0.03}


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


BUNDLES = tuple((f"cats-{place}", digest_of(f"cats-{place}")) for place in range(1, 5))


def fill(service: FleetService, devices: int, windows: int, seed: int = 7) -> None:
    """`windows` rows of telemetry in all."""
    random, now = Random(seed), time.time()
    found = [_device(random, place, now) for place in range(devices)]
    with service.database.write() as session:
        session.execute(insert(BundleRow), [_bundle(name, digest, now) for name, digest in BUNDLES])
        session.execute(insert(Group), [_group(place) for place in range(GROUPS)])
        for chunk in _chunks(found):
            session.execute(insert(Device), chunk)
    for chunk in _chunks(_windows(random, found, windows // devices, now)):
        with service.database.write() as session:
            session.execute(insert(WindowRow), chunk)
    with service.database.write() as session:
        _rollouts(session, random, found, now)
        session.execute(insert(Event), [_event(random, found, now - 10 * place) for place in range(5_000)][::-1])


def _chunks(rows: Any) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == CHUNK:
            yield held
            held = []
    if held:
        yield held


def _bundle(name: str, digest: str, now: float) -> dict[str, Any]:
    return {
        "digest": digest,
        "name": name,
        "task": "image-classification",
        "device": "raspberry-pi-4",
        "tiers": ["device"],
        "size_bytes": 21_400_000,
        "new_bytes": 3_100_000,
        "index": "{}",
        "signature": "",
        "signed_by": "",
        "pushed_at": now - 86_400,
        "pushed_by": "admin",
    }


def _group(place: int) -> dict[str, Any]:
    return {
        "name": f"plant-{place + 1:02}",
        "selector": f"site=plant-{place + 1:02}",
        "interval_s": INTERVAL_S,
        "compare_share": 0.0,
        "version": 1,
    }


def _device(random: Random, place: int, now: float) -> dict[str, Any]:
    state = random.choices(list(STATES), list(STATES.values()))[0]
    old, new = BUNDLES[0][1], BUNDLES[1][1]
    slot = Slot(running=new, checked=16, right=16)
    if state == "moving":
        slot = Slot(running=old, candidate=new, phase="downloading", checked=16, right=16)
    elif state == "failed":
        reason = "2 of 16 golden inputs were answered otherwise: the first at 31.2 dB, allowed 40.0 dB"
        slot = Slot(running=old, candidate=new, phase="failed", reason=reason, checked=16, right=14)
    facts = Facts(boot=secrets.token_hex(16), agent="0.1.0", system="Debian GNU/Linux 12", machine="aarch64")
    site = min(GROUPS, 1 + int(random.expovariate(1 / 5.0)) % GROUPS)
    return {
        "id": secrets.token_hex(16),
        "name": f"pi-{place:05}",
        "tier": "device",
        "standing": "active",
        "labels": {"site": f"plant-{site:02}", "board": random.choice(("rpi4", "rpi5", "jetson-orin-nano"))},
        "token_hash": secrets.token_hex(32),
        "certificate_serial": secrets.token_hex(20),
        "certificate_ends_at": now + 80 * 86_400,
        "enrolled_at": now - 30 * 86_400,
        "seen_at": now - (random.uniform(0, 30) if state != "lost" else 5 * INTERVAL_S),
        "boot": facts.boot,
        "facts": facts.model_dump(mode="json"),
        "slot": slot.model_dump(mode="json"),
        "running": slot.running,
        "wanted": new,
        "kept": [],
        "taken": -1,
        "generation": 2,
        "changed_tick": 1,
        "version": 1,
    }


def _window(random: Random, digest: str) -> dict[str, Any]:
    slow = random.lognormvariate(3.2, 0.25)
    answers = random.randint(40, 240)
    latency = histogram_of(slow * random.lognormvariate(0, 0.3) for _ in range(answers))
    return Window(
        sequence=0,
        started_at=0.0,
        seconds=WINDOW_S,
        digest=digest,
        plan=random.choice(("local", "split at block 4")),
        answered=answers,
        errors=random.random() < 0.02,
        degraded=random.randint(0, 3),
        late=random.randint(0, 2),
        latency=latency,
        confidence=histogram_of(random.uniform(0.4, 1) for _ in range(20)),
        energy_mj=answers * 55.0,
        link=LinkSeen(bandwidth_mbps=random.uniform(4, 60), rtt_ms=random.uniform(8, 60), loss=0.0),
        health=Health(temperature_c=random.uniform(48, 71), power_w=random.uniform(3.2, 6.1), memory_bytes=410_000_000),
    ).model_dump(mode="json")


def _windows(random: Random, devices: list[dict[str, Any]], each: int, now: float) -> Iterator[dict[str, Any]]:
    made = {digest: [_window(random, digest) for _ in range(TEMPLATES)] for _, digest in BUNDLES[:2]}
    for device in devices:
        switched = random.randint(each // 3, each)
        for sequence in range(each):
            digest = BUNDLES[0][1] if sequence < switched else device["running"]
            started_at = now - (each - sequence) * WINDOW_S
            content = {**random.choice(made[digest]), "sequence": sequence, "started_at": started_at}
            yield {
                "device": device["id"],
                "sequence": sequence,
                "started_at": started_at,
                "seconds": WINDOW_S,
                "digest": digest,
                "answered": content["answered"],
                "errors": content["errors"],
                "content": content,
            }


def _rollouts(session: Any, random: Random, devices: list[dict[str, Any]], now: float) -> None:
    """One that stands at its second step, one that is complete."""
    for place, (group, state) in enumerate((("plant-01", "paused"), ("plant-02", "complete"))):
        held = [device for device in devices if device["labels"]["site"] == group]
        cut = [max(1, len(held) // 20), len(held) // 4, len(held)]
        stages = [
            {
                "text": f"{share} of {len(held):,} devices",
                "devices": [one["id"] for one in held[start:end]],
                "ends": False,
            }
            for share, start, end in zip((0.05, 0.25, 1), [0, *cut], cut, strict=False)
        ]
        order = RolloutOrder(bundle=BUNDLES[1][1], group=group, guards="p95<=80ms,errors<=1%", max_wrong=len(held))
        row = {
            "id": secrets.token_hex(16),
            "bundle": order.bundle,
            "group": group,
            "active": group if state == "paused" else None,
            "order": order.model_dump(mode="json"),
            "stages": stages,
            "state": state,
            "stage": 1 if state == "paused" else 2,
            "stage_at": now - 600,
            "reason": "paused by admin" if state == "paused" else "",
            "waits": "",
            "verdicts": [
                {"text": "p95<=80ms", "value": 46.2, "holds": True, "samples": 8_231},
                {"text": "errors<=1%", "value": 0.0093, "holds": None, "samples": 8_302},
            ],
            "started_at": now - 3_600 - place,
            "started_by": "admin",
            "ended_at": None if state == "paused" else now - 60,
            "version": 3,
        }
        session.execute(insert(Rollout), [row])
        members = [
            {
                "rollout": row["id"],
                "device": one["id"],
                "state": _member(one, place, at < cut[1]),
                "previous": BUNDLES[0][1],
            }
            for at, one in enumerate(held)
        ]
        session.execute(insert(RolloutDevice), members)


def _member(device: dict[str, Any], place: int, asked: bool) -> str:
    if place == 0 and not asked:
        return "waiting"
    return {"failed": "wrong", "downloading": "asked"}.get(device["slot"]["phase"], "right")


def _event(random: Random, devices: list[dict[str, Any]], at: float) -> dict[str, Any]:
    device = random.choice(devices)["name"]
    return {"at": at, "actor": device, "action": "device.start", "subject": device, "detail": {"agent": "0.1.0"}}
