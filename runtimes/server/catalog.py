"""Which models a node holds: the parts for its tier of its bundles, by name and version."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import TIERS, Manifest, Part, Tier
from edgekit.errors import EdgekitError, MismatchError, MissingExtraError, NodeError, UnknownNameError
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.server.batching import BatchOptions
from edgekit.runtimes.server.model import ServedModel

logger = logging.getLogger("edgekit")


class Catalog:
    """Open bundles and their served parts. `models` in the order of the bundles."""

    def __init__(self, bundles: Sequence[Bundle], models: Sequence[ServedModel]) -> None:
        self.bundles, self.models = tuple(bundles), tuple(models)
        self._versions: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            self._versions.setdefault(model.name, {})[model.version] = model

    @classmethod
    def open(
        cls,
        paths: Iterable[str | Path],
        tier: Tier,
        *,
        threads: int | None = None,
        batch: BatchOptions = BatchOptions(),
        key: Path | None = None,
    ) -> Catalog:
        """Raises NodeError where a bundle holds nothing for `tier`, BundleError, and MissingExtraError where no
        runtime of its parts is installed. A part without its runtime is left out, which is logged."""
        bundles: list[Bundle] = []
        models: list[ServedModel] = []
        try:
            for path in paths:
                bundle = Bundle.open(path, key)
                if any(other.digest == bundle.digest for other in bundles):
                    bundle.close()
                    raise NodeError(f"{path} is given twice", hint="name each bundle once")
                bundles.append(bundle)
                version = str(sum(other.manifest.name == bundle.manifest.name for other in bundles))
                models += _serve(bundle, tier, version, threads, batch)
        except BaseException:
            cls(bundles, models).close()
            raise
        return cls(bundles, models)

    def find(self, name: str, version: str = "", *, bundle: str = "", plan: str = "") -> ServedModel:
        """The newest of that name which fits. Raises UnknownNameError for the name or the version, MismatchError
        where `bundle` or `plan` (digests) are not those of what is served."""
        versions = self._versions.get(name)
        if versions is None:
            raise UnknownNameError("model", name, self._versions)
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

    def versions(self, name: str) -> dict[str, ServedModel]:
        """Raises UnknownNameError."""
        if name not in self._versions:
            raise UnknownNameError("model", name, self._versions)
        return self._versions[name]

    def sibling(self, model: ServedModel, part: str) -> ServedModel | None:
        """Another part of the same bundle, None where this node does not serve it."""
        return self._versions.get(model_name(model.bundle.manifest.name, part), {}).get(model.version)

    @property
    def is_idle(self) -> bool:
        return all(model.is_idle for model in self.models)

    def close(self) -> None:
        for model in self.models:
            model.close()
        for bundle in self.bundles:
            bundle.close()


def parts_for(manifest: Manifest, tier: Tier) -> list[Part]:
    """Those of `tier` and of the servers below it; a bundle that was made for a device alone is served whole."""
    reach = TIERS.index(tier)
    remote = [part for part in manifest.parts if part.tier != "device" and TIERS.index(part.tier) <= reach]
    if any(part.tier != "device" for part in manifest.parts) and tier != "device":
        return remote
    return [part for part in manifest.parts if part.tier == "device"]


def _serve(bundle: Bundle, tier: Tier, version: str, threads: int | None, batch: BatchOptions) -> list[ServedModel]:
    parts = parts_for(bundle.manifest, tier)
    if not parts:
        held = sorted({part.tier for part in bundle.manifest.parts}, key=TIERS.index)
        raise NodeError(
            f"{bundle.path} holds no part for the tier {tier}: it has parts for {', '.join(held)}",
            hint=f"serve it with --tier {held[-1]}, or export it with --{tier}",
        )
    served: list[ServedModel] = []
    missing: EdgekitError | None = None
    try:
        for part in parts:
            try:
                served.append(ServedModel(bundle, part, version, threads=threads, batch=batch))
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
