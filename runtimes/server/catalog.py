"""Which models a node holds: the parts for its tier of its bundles, by name and version; exchanged while it serves.

Who uses a model holds it (`acquire`, `release`): a bundle that was replaced is closed when the last request has left
it, so that no request is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import TIERS, Manifest, Part, Tier
from edgekit.errors import EdgekitError, MismatchError, MissingExtraError, NodeError, UnknownNameError
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.model import ServedModel, Serving
from edgekit.runtimes.server.shelf import on_shelf

logger = logging.getLogger("edgekit")


@dataclass(eq=False)
class _Holding:
    """A bundle that is open, and who uses it. `retired`: no new request finds it."""

    bundle: Bundle
    path: Path
    version: str
    models: list[ServedModel]
    users: int = 0
    retired: bool = False


@dataclass(frozen=True)
class Reloaded:
    """What became of one path: `version` where another bundle lies there and is served now, `error` where what lies
    there cannot be; neither where nothing changed."""

    path: Path
    version: str = ""
    error: EdgekitError | None = None


@dataclass
class _State:
    """What is served, replaced as a whole."""

    holdings: tuple[_Holding, ...] = ()
    versions: dict[str, dict[str, ServedModel]] = field(default_factory=dict)

    @classmethod
    def of(cls, holdings: Sequence[_Holding]) -> _State:
        versions: dict[str, dict[str, ServedModel]] = {}
        for holding in holdings:
            for model in holding.models:
                versions.setdefault(model.name, {})[model.version] = model
        return cls(tuple(holdings), versions)


class Catalog:
    """Open bundles and their served parts. Safe to use from many threads."""

    def __init__(self, tier: Tier, serving: Serving, key: Path | None = None, keep_versions: int = 1) -> None:
        self.tier, self.serving, self.key, self.keep_versions = tier, serving, key, keep_versions
        self.on_open: Callable[[ServedModel], None] | None = None
        self._lock, self._reloading = threading.Lock(), threading.Lock()
        self._state = _State()
        self._owners: dict[ServedModel, _Holding] = {}
        self._newest: dict[str, int] = {}  # bundle name -> the last number given, which never comes back
        self._shelves: dict[Path, list[Path]] = {}  # folder of bundles -> those that were served of it
        self._places: dict[str, Path] = {}  # model name -> where its bundle lay, also when another lies there now

    @classmethod
    def open(
        cls,
        paths: Iterable[str | Path],
        tier: Tier,
        serving: Serving = Serving(),
        *,
        key: Path | None = None,
        keep_versions: int = 1,
    ) -> Catalog:
        """`paths`: of bundles, or of folders of bundles. `keep_versions`: of a path whose bundle was replaced, how many
        earlier ones stay served.

        Raises NodeError where a bundle holds nothing for `tier` and for a folder without bundles, BundleError, and
        MissingExtraError where no runtime of its parts is installed. A part without its runtime is left out, which is
        logged."""
        catalog = cls(tier, serving, key, keep_versions)
        holdings: list[_Holding] = []
        try:
            for path in catalog._laid_out(map(Path, paths)):
                holding = catalog._hold(path, [one.bundle.digest for one in holdings])
                if holding is None:
                    raise NodeError(f"{path} is given twice", hint="name each bundle once")
                holdings.append(holding)
        except BaseException:
            for holding in holdings:
                catalog._close(holding)
            raise
        catalog._state = _State.of(holdings)
        return catalog

    def _laid_out(self, paths: Iterable[Path]) -> Iterator[Path]:
        for path in paths:
            shelved = on_shelf(path)
            if shelved is None:
                yield path
                continue
            if not shelved:
                raise NodeError(f"the folder {path} holds no bundles", hint="give a bundle, or a folder of bundles")
            self._shelves[path] = shelved
            yield from shelved

    @property
    def models(self) -> list[ServedModel]:
        """In the order of the bundles."""
        return [model for holding in self._state.holdings for model in holding.models]

    @property
    def bundles(self) -> list[Bundle]:
        return [holding.bundle for holding in self._state.holdings]

    @property
    def is_idle(self) -> bool:
        return all(model.is_idle for model in self.models)

    def find(self, name: str, version: str = "", *, bundle: str = "", plan: str = "") -> ServedModel:
        """The newest of that name which fits. Raises UnknownNameError for the name or the version, MismatchError
        where `bundle` or `plan` (digests) are not those of what is served."""
        versions = self.versions(name)
        if version and version not in versions:
            raise UnknownNameError(f"version of {name}", version, versions)
        fitting = [versions[version]] if version else list(reversed(versions.values()))
        for what, wanted, fits in (
            ("bundle", bundle, lambda model: model.bundle.digest == bundle),
            ("plan", plan, lambda model: plan in model.plans),
        ):
            if wanted:
                fitting = [model for model in fitting if fits(model)]
            if not fitting:
                raise MismatchError(
                    f"{name} is served here, but not of the {what} {wanted[:16]}",
                    hint="serve and run the same bundle: `edgekit inspect` shows its digest",
                )
        return fitting[0]

    def acquire(self, name: str, version: str = "", *, bundle: str = "", plan: str = "") -> ServedModel:
        """Like `find`; what is found stays open, with all of its bundle, until `release`."""
        with self._lock:
            model = self.find(name, version, bundle=bundle, plan=plan)
            self._owners[model].users += 1
            return model

    def release(self, model: ServedModel) -> None:
        with self._lock:
            holding = self._owners[model]
            holding.users -= 1
            is_last = holding.retired and holding.users == 0
        if is_last:
            self._close(holding)

    def versions(self, name: str) -> dict[str, ServedModel]:
        """Raises UnknownNameError."""
        versions = self._state.versions
        if name not in versions:
            raise UnknownNameError("model", name, versions)
        return versions[name]

    def sibling(self, model: ServedModel, part: str) -> ServedModel | None:
        """Another part of the same bundle, None where this node does not serve it."""
        name = model_name(model.bundle.manifest.name, part)
        return next((one for one in self._owners[model].models if one.name == name), None)

    def reload(self, name: str = "") -> list[Reloaded]:
        """Opens again what lies at each path (of the bundles that serve the model `name`, or did before another one
        lay there, where given). Another bundle than the newest of the path is served from then on as the next version,
        also one that was served before; beside it stay `keep_versions` earlier ones of the path. One that cannot be
        served changes nothing. Of a folder of bundles, those are served that lie there now. Raises UnknownNameError."""
        with self._reloading:
            if name and name not in self._state.versions and name in self._places:
                return [self._reload(self._places[name])]
            wanted = self.versions(name).values() if name else self.models
            paths = {self._owners[model].path: None for model in wanted}
            if name:
                return [self._reload(path) for path in paths]
            shelved = {path for shelf in self._shelves.values() for path in shelf}
            alone = [self._reload(path) for path in paths if path not in shelved]
            return [*alone, *(outcome for folder in self._shelves for outcome in self._reload_shelf(folder))]

    def _reload_shelf(self, folder: Path) -> list[Reloaded]:
        """Those that are gone stay served while one that came cannot be."""
        before, now = self._shelves[folder], on_shelf(folder) or []
        outcomes: list[Reloaded] = []
        fresh: list[_Holding] = []
        for path in now:
            try:
                held = [one.bundle.digest for one in (*self._state.holdings, *fresh)]
                holding = None if path in before else self._hold(path, held)
            except EdgekitError as error:
                logger.error("%s is not served, what was served stays: %s", path, error.message)
                outcomes.append(Reloaded(path, error=error))
                continue
            outcomes.append(Reloaded(path, holding.version if holding is not None else ""))
            fresh += [holding] if holding is not None else []
        failed = {outcome.path for outcome in outcomes if outcome.error is not None}
        gone = set() if failed or not now else set(before) - set(now)
        self._shelves[folder] = [path for path in [*(set(before) - set(now) - gone), *now] if path not in failed]
        self._exchange(fresh, {path: now.index(path) for path in now}, gone)
        return outcomes

    def _exchange(self, fresh: Sequence[_Holding], places: Mapping[Path, int], gone: Collection[Path]) -> None:
        """What is `fresh` is served, what is `gone` no longer; those of `places` in that order, behind the others."""
        if self.on_open is not None:
            for model in (model for holding in fresh for model in holding.models):
                self.on_open(model)
        with self._lock:
            leaving = [one for one in self._state.holdings if one.path in gone]
            staying = [one for one in self._state.holdings if one not in leaving]
            self._state = _State.of(sorted([*staying, *fresh], key=lambda one: places.get(one.path, -1)))
            for one in leaving:
                one.retired = True
            unused = [one for one in leaving if one.users == 0]
        for one in unused:
            self._close(one)

    def _reload(self, path: Path) -> Reloaded:
        try:
            newest = [one for one in self._state.holdings if one.path == path][-1:]
            elsewhere = [one for one in self._state.holdings if one.path != path]
            holding = self._hold(path, [one.bundle.digest for one in (*newest, *elsewhere)])
        except EdgekitError as error:
            logger.error("%s is not reloaded, what was served stays: %s", path, error.message)
            return Reloaded(path, error=error)
        if holding is None:
            return Reloaded(path)
        if self.on_open is not None:
            for model in holding.models:
                self.on_open(model)
        with self._lock:
            before = [one for one in self._state.holdings if one.path == path]
            again = [one for one in before if one.bundle.digest == holding.bundle.digest]
            earlier = [one for one in before if one not in again]
            leaving = [*again, *earlier[: max(0, len(earlier) - self.keep_versions)]]
            staying = [one for one in self._state.holdings if one not in leaving]
            self._state = _State.of([*staying, holding])
            for one in leaving:
                one.retired = True
            unused = [one for one in leaving if one.users == 0]
        for one in unused:
            self._close(one)
        logger.info("%s is served as version %s", path, holding.version)
        return Reloaded(path, holding.version)

    def _hold(self, path: Path, held: Sequence[str]) -> _Holding | None:
        """The bundle at `path`, served; None where its digest is among `held`."""
        bundle = Bundle.open(path, self.key)
        try:
            if bundle.digest in held:
                bundle.close()
                return None
            number = self._newest.get(bundle.manifest.name, 0) + 1
            version = str(number)
            holding = _Holding(bundle, path, version, _serve(bundle, self.tier, version, self.serving))
        except BaseException:
            bundle.close()
            raise
        self._newest[bundle.manifest.name] = number
        self._owners.update(dict.fromkeys(holding.models, holding))
        self._places.update({model.name: path for model in holding.models})
        return holding

    def _close(self, holding: _Holding) -> None:
        for model in holding.models:
            model.close()
            self._owners.pop(model, None)
        holding.bundle.close()

    def close(self) -> None:
        for holding in self._state.holdings:
            self._close(holding)


def parts_for(manifest: Manifest, tier: Tier) -> list[Part]:
    """Those of `tier` and of the servers below it; a bundle that was made for a device alone is served whole.

    Raises NodeError where there is none."""
    reach, tiers = TIERS.index(tier), {part.tier for part in manifest.parts}
    if tier == "device" or tiers == {"device"}:
        found = [part for part in manifest.parts if part.tier == "device"]
    else:
        found = [part for part in manifest.parts if part.tier != "device" and TIERS.index(part.tier) <= reach]
    if not found:
        held = sorted(tiers, key=TIERS.index)
        raise NodeError(
            f"the bundle of {manifest.name} holds no part for the tier {tier}: it has parts for {', '.join(held)}",
            hint=f"give --tier {held[-1]}, or export it with --{tier}",
        )
    return found


def _serve(bundle: Bundle, tier: Tier, version: str, serving: Serving) -> list[ServedModel]:
    parts = parts_for(bundle.manifest, tier)
    served: list[ServedModel] = []
    missing: EdgekitError | None = None
    try:
        for part in parts:
            try:
                served.append(ServedModel(bundle, part, version, serving))
            except MissingExtraError as error:
                missing = error
                logger.warning("%s of %s is not served: %s", part.name, bundle.path, error.message)
        if not served and missing is not None:
            raise missing
    except BaseException:
        for model in served:
            model.close()
        raise
    return served
