"""The service, all of it: made over a folder and a database."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from edgekit.errors import StoreError
from edgekit.fleet.protocol.people import Overview
from edgekit.fleet.registry.blobs import Blobs, FolderBlobs
from edgekit.fleet.service.backup import refuse_half_restored
from edgekit.fleet.service.bundles import Bundles
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.devices import Devices
from edgekit.fleet.service.glance import Glances
from edgekit.fleet.service.groups import Groups
from edgekit.fleet.service.history import Histories
from edgekit.fleet.service.insights import Insights
from edgekit.fleet.service.invitations import Invitations
from edgekit.fleet.service.people import People
from edgekit.fleet.service.plans import Plans
from edgekit.fleet.service.progress import Progress
from edgekit.fleet.service.repeats import Repeats
from edgekit.fleet.service.retention import Keeping, Retention
from edgekit.fleet.service.rollouts import Rollouts
from edgekit.fleet.service.sign_ins import SignIns
from edgekit.fleet.service.telemetry import Telemetry
from edgekit.fleet.service.trust import Trust
from edgekit.fleet.store.database import Database
from edgekit.fleet.store.lease import LEADER, Lease
from edgekit.fleet.store.tables import BundleRow, Rollout
from edgekit.fleet.trust.authority import Authority

SUBFOLDERS = ("blobs", "trust", "work")


class FleetService:
    """`folder` holds what is not in the database: blobs, keys, and the database itself where `url` is None."""

    def __init__(
        self,
        folder: Path,
        url: str | None = None,
        *,
        blobs: Blobs | None = None,
        key: Path | None = None,
        keeping: Keeping = Keeping(),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises StoreError, UsageError for the URL, MissingExtraError."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in SUBFOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"cannot use {folder}: {error.strerror}", hint="choose another --data folder") from error
        refuse_half_restored(folder)
        self.database = Database(url or f"sqlite:///{folder / 'fleet.db'}")
        self.database.create()
        blobs = FolderBlobs(folder / "blobs") if blobs is None else blobs
        core = Core(self.database, blobs, Authority(folder / "trust"), folder / "work", key, now)
        self.core = core
        self.people = People(core)
        self.groups = Groups(core)
        self.devices = Devices(core)
        self.trust = Trust(core, folder / "trust")
        self.trust.start()
        self.bundles = Bundles(core, self.trust)
        self.rollouts = Rollouts(core, self.trust.need)
        self.insights = Insights(core)
        self.plans = Plans(core, self.rollouts.manifests)
        self.sign_ins = SignIns(core, self.people)
        self.glances = Glances(core)
        self.histories = Histories(core)
        self.progress = Progress(core)
        self.invitations = Invitations(core)
        self.repeats = Repeats(core)
        self.telemetry = Telemetry(core)
        self.retention = Retention(core, keeping)
        self.lease = Lease(self.database, LEADER, now=now)

    def overview(self) -> Overview:
        groups = self.groups.all()
        everyone = self.devices.count()
        with self.database.read() as session:
            bundles = session.scalar(select(func.count()).select_from(BundleRow)) or 0
            going = session.scalar(select(func.count()).select_from(Rollout).where(Rollout.active.is_not(None))) or 0
        return Overview(
            version=importlib.metadata.version("edgekit"),
            devices=everyone[0],
            connected=everyone[1],
            bundles=bundles,
            rollouts=going,
            groups=groups,
            trust_ends_at=self.trust.ends_at(),
        )

    def close(self) -> None:
        self.devices.close()
        self.database.close()
