"""Bundle -> Session: verified, its part chosen by what is installed here, opened and warm."""

from __future__ import annotations

import logging
from pathlib import Path

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.cache import cache_root
from edgekit.bundle.manifest import Manifest, Part
from edgekit.errors import MissingExtraError, UnknownNameError, UsageError
from edgekit.runtimes.session import Session, SessionOptions, open_session

logger = logging.getLogger("edgekit")


def load(
    bundle: Bundle | str | Path,
    *,
    variant: str | None = None,
    part: str | None = None,
    threads: int | None = None,
    provider: str | None = None,
    warmup: int | None = None,
    key: Path | None = None,
) -> Session:
    """The session of one part, ready to run. A bundle given by path is verified (against `key`, where given).

    Without `part` and `variant` it is the default part, or where its runtime is not installed the first one whose
    runtime is, which is logged. `warmup` None runs once where every shape is fixed. Raises BundleError,
    UnknownNameError, UsageError (a variant of several parts), MissingExtraError (no runtime here) or SessionError.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}, allowed 1 or more", hint="leave it out to take every core")
    if isinstance(bundle, Bundle):
        return _load(bundle, variant, part, threads, provider, warmup)
    opened = Bundle.open(bundle, key)
    try:
        session = _load(opened, variant, part, threads, provider, warmup)
    except BaseException:
        opened.close()
        raise
    session.on_close(opened.close)
    return session


def candidate_parts(manifest: Manifest, variant: str | None = None, part: str | None = None) -> list[Part]:
    """The parts to try, in order. Raises UnknownNameError or UsageError."""
    known = {entry.name: entry for entry in manifest.parts}
    if part is not None:
        if part not in known:
            raise UnknownNameError("part", part, known)
        if variant is not None and part not in _variant(manifest, variant):
            raise UsageError(f"variant {variant!r} does not take the part {part!r}", hint="give one of the two")
        return [known[part]]
    variants = [_variant(manifest, variant)] if variant is not None else [entry.parts for entry in manifest.variants]
    if len(variants[0]) > 1:
        raise UsageError(
            f"this variant runs over several parts: {', '.join(variants[0])}", hint="name one of them as the part"
        )
    return [known[names[0]] for names in variants if len(names) == 1]


def _variant(manifest: Manifest, name: str) -> tuple[str, ...]:
    variants = {entry.name: entry.parts for entry in manifest.variants}
    if name not in variants:
        raise UnknownNameError("variant", name, variants)
    return variants[name]


def _load(
    bundle: Bundle, variant: str | None, part: str | None, threads: int | None, provider: str | None, warmup: int | None
) -> Session:
    parts = candidate_parts(bundle.manifest, variant, part)
    missing: MissingExtraError | None = None
    for entry in parts:
        options = SessionOptions(
            threads=threads,
            warmup=_warmup_runs(entry) if warmup is None else warmup,
            provider=provider,
            cache_dir=cache_root() / "engines" / entry.sha256,
        )
        try:
            session = _open(bundle, entry, options)
        except MissingExtraError as error:
            missing = missing or error
            continue
        if missing is not None:
            logger.warning(
                "the default part %s needs %s, which is not installed (%s): running %s (%s %s) instead",
                parts[0].name,
                missing.package,
                missing.hint,
                entry.name,
                entry.format,
                entry.precision,
            )
        return session
    assert missing is not None
    raise missing


def _open(bundle: Bundle, part: Part, options: SessionOptions) -> Session:
    inputs, outputs = ([entry.spec() for entry in entries] for entries in (part.inputs, part.outputs))
    session = open_session(part.format, bundle.part_path(part.name), inputs, outputs, options)
    try:
        session.warm_up()
    except BaseException:
        session.close()
        raise
    return session


def _warmup_runs(part: Part) -> int:
    """A dynamic dimension may have a least size that the manifest does not say: such a part is not run on ones."""
    return int(all(entry.spec().is_static for entry in part.inputs))
