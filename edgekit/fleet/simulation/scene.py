"""All simulated devices together: enrolled with a real invitation, run for a bounded time, counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

import edgekit
from edgekit.bundle.layout import MANIFEST, parse_index
from edgekit.errors import BundleError
from edgekit.fleet.client import problem_of
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Facts, Slot
from edgekit.fleet.protocol.bundles import Offer
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.simulation.actor import GOLDEN, Actor, Part
from edgekit.fleet.simulation.behaviour import Behaviour, Fault, Senses
from edgekit.fleet.simulation.line import Line
from edgekit.fleet.simulation.outcome import Outcome
from edgekit.fleet.trust.authority import certificate_request, private_pem
from edgekit.runtimes.host import collect_all_rarely

AT_ONCE = 32  # enrolments under way
MOST_DEVICES = 100_000
TRIES = 5

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bad:
    """Which bundle does harm, and on which share of the devices. `front` of its digest; "" means every bundle but the
    first that a device ran."""

    fault: Fault
    front: str = ""
    share: float = 1.0


@dataclass(frozen=True)
class Simulation:
    """`invitation`: a token with `devices` uses. `running`: the bundle that all of them run already, "" for none.
    `backlog`: windows that each has kept from a time without the fleet. `authority`: of the service, for https."""

    url: str
    invitation: str
    devices: int
    seconds: float
    prefix: str = "sim"
    seed: int = 0
    part: Part = field(default_factory=Part)
    behaviour: Behaviour = field(default_factory=Behaviour)
    bad: Bad | None = None
    running: str = ""
    backlog: int = 0
    authority: Path | None = None


class Scene:
    """One run. Use `play`."""

    def __init__(self, simulation: Simulation, report: Report = lambda name, done, total: None) -> None:
        self._simulation, self._report = simulation, report
        parts = urlsplit(simulation.url)
        self._host, self._tls = parts.hostname or "127.0.0.1", parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._request = certificate_request(self._key, simulation.prefix)
        self._stopped = threading.Event()
        self._downloads: dict[str, asyncio.Task[None]] = {}
        self._first = simulation.running
        self.outcome = Outcome(devices=simulation.devices)
        self.actors: list[Actor] = []

    def stop(self) -> None:
        """From any thread: the run ends before its time."""
        self._stopped.set()

    async def play(self) -> Outcome:
        """Raises what the service says to the first enrolment that it refuses."""
        with tempfile.TemporaryDirectory(prefix="edgekit-simulation-") as folder:
            await self._enrol(Path(folder))
        await self._run()
        for actor in self.actors:
            actor.line.close()
        self._count()
        return self.outcome

    async def _enrol(self, folder: Path) -> None:
        started, places = time.perf_counter(), asyncio.Semaphore(AT_ONCE)

        async def one(number: int, line: Line) -> Actor:
            async with places:
                actor = await self._enrol_one(number, line, folder)
            self.outcome.enrolled += 1
            self._report("enrol", self.outcome.enrolled, self._simulation.devices)
            return actor

        lines = [self._line() for _ in range(AT_ONCE)]
        locks = [asyncio.Lock() for _ in lines]

        async def in_turn(number: int) -> Actor:
            async with locks[number % AT_ONCE]:
                return await one(number, lines[number % AT_ONCE])

        tasks = [asyncio.create_task(in_turn(number)) for number in range(self._simulation.devices)]
        try:
            self.actors = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            for line in lines:
                line.close()
        self.outcome.enrol_s = time.perf_counter() - started

    def _line(self, token: str = "", certificate: tuple[Path, Path] | None = None) -> Line:
        if not self._tls:
            return Line(self._host, self._port, token)
        authority = self._simulation.authority
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
        return Line(self._host, self._port, token, context)

    async def _enrol_one(self, number: int, line: Line, folder: Path) -> Actor:
        simulation = self._simulation
        name = f"{simulation.prefix}-{number:05d}"
        facts = Facts(
            boot=new_identifier(),
            agent=f"{edgekit.__version__} (simulated)",
            system="Linux (simulated)",
            machine="aarch64",
            profile="raspberry-pi-4",
            formats=("onnx",),
            memory_bytes=4 << 30,
        )
        enrolment = Enrolment(token=simulation.invitation, name=name, request=self._request, facts=facts)
        body = enrolment.model_dump_json().encode()
        for left in reversed(range(TRIES)):
            status, answer = await line.call("POST", "/v1/enroll", body)
            if status in (429, 503) and left:
                await asyncio.sleep(1.0)
                continue
            if status >= 400:
                raise problem_of(status, answer)
            break
        enrolled = Enrolled.model_validate_json(answer)
        return self._actor(number, name, enrolled, facts, folder)

    def _actor(self, number: int, name: str, enrolled: Enrolled, facts: Facts, folder: Path) -> Actor:
        simulation = self._simulation
        certificate = None
        if self._tls:
            certificate = (folder / f"{name}.pem", folder / "key.pem")
            certificate[0].write_text(enrolled.certificate)
            certificate[1].write_bytes(private_pem(self._key))
        random = Random(f"{simulation.seed} {number}")
        is_harmed = simulation.bad is not None and random.random() < simulation.bad.share
        running = simulation.running or None
        right = GOLDEN if running else 0
        actor = Actor(
            name,
            enrolled.device,
            self._line(enrolled.token, certificate),
            Senses(simulation.behaviour, simulation.seed * MOST_DEVICES + number),
            simulation.part,
            self.outcome,
            facts,
            random,
            self._fetch,
            self._fault_of if is_harmed else lambda digest: None,
            Slot(running=running, checked=right, right=right),
        )
        if simulation.backlog:
            actor.collect(simulation.backlog, 30.0, simulation.running or "0" * 64)
        return actor

    def _fault_of(self, digest: str) -> Fault | None:
        bad = self._simulation.bad
        assert bad is not None
        self._first = self._first or digest
        is_bad = digest.startswith(bad.front) if bad.front else digest != self._first
        return bad.fault if is_bad else None

    async def _fetch(self, line: Line, digest: str) -> None:
        """Once for this process, with every hash checked; who comes later waits for it."""
        task = self._downloads.get(digest)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._downloads[digest] = asyncio.create_task(self._download(self._copy(line), digest))
        await asyncio.shield(task)

    def _copy(self, line: Line) -> Line:
        """Of its own, so that the device goes on talking meanwhile."""
        return Line(self._host, self._port, line.token, line.tls)

    async def _download(self, line: Line, digest: str) -> None:
        """Raises BundleError where something else came."""
        try:
            offer = Offer.model_validate_json(await _get(line, f"/v1/bundles/{digest}/index"))
            index = parse_index(offer.index.encode(), digest)
            if index.files[MANIFEST].sha256 != digest:
                raise BundleError(f"the fleet sent the index of another bundle than {digest[:16]}")
            for entry in {entry.sha256: entry for entry in index.files.values()}.values():
                data = await _get(line, f"/v1/blobs/{entry.sha256}")
                if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
                    raise BundleError(f"what came as {entry.sha256[:16]} is something else")
                self.outcome.bytes_received += len(data)
            self.outcome.downloads += 1
        finally:
            line.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        until = started + self._simulation.seconds
        tasks = [asyncio.create_task(actor.run(until)) for actor in self.actors]
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError):  # only the main thread hears of signals
                loop.add_signal_handler(number, self.stop)
        try:
            while (left := until - loop.time()) > 0 and not self._stopped.is_set():
                self._report("run", int(loop.time() - started), int(self._simulation.seconds))
                await asyncio.sleep(min(0.25, left))
        finally:
            self.outcome.seconds = loop.time() - started
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for one in ended:
            if isinstance(one, Exception):
                raise one

    def _count(self) -> None:
        outcome = self.outcome
        for actor in self.actors:
            if actor.slot.running is not None:
                outcome.running[actor.slot.running] += 1
        bad = self._simulation.bad
        if bad is None:
            return
        held = {actor.name: actor.slot.running for actor in self.actors}
        for digest, names in outcome.ran.items():
            if self._fault_of(digest) is not None:
                outcome.bad_ran += len(names)
                outcome.returned += sum(held[name] != digest for name in names)


async def _get(line: Line, path: str) -> bytes:
    status, body = await line.call("GET", path)
    if status >= 400:
        raise problem_of(status, body)
    return body


def play(simulation: Simulation, report: Report = lambda name, done, total: None) -> Outcome:
    """Raises like `Scene.play`; bounded by the devices and seconds of the simulation."""
    collect_all_rarely()  # what is measured is the service, and not pauses here
    return asyncio.run(Scene(simulation, report).play())
