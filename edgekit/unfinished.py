"""What outlives an interrupted export, and where: folders of the cache, named by what was asked of which model."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import edgekit
from edgekit.bundle.cache import cache_root
from edgekit.errors import EdgekitError, OutputError
from edgekit.model import Model
from edgekit.recipe import Recipe


@contextmanager
def unfinished_folder(recipe: Recipe, original: Model) -> Iterator[Path]:
    """Gone once its export has ended, well or refused: only an interruption leaves it, for the next export of the same
    model with the same options."""
    folder = _folder("", original, sorted(recipe.provenance().items()))
    try:
        yield folder
    except EdgekitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def recovery_folder(recipe: Recipe, original: Model) -> Path:
    """Of pruned weights and compressed tokens that learn: also kept when an export is refused, since a limit may be
    asked for otherwise."""
    fewer = recipe.prune_weights, recipe.recover, recipe.compress_tokens, recipe.epochs, recipe.length
    asked = (*fewer, recipe.train, recipe.calibration, recipe.seed)
    return _folder("weights-", original, asked)


def _folder(prefix: str, original: Model, asked: object) -> Path:
    facts = (edgekit.__version__, original.source.digest, asked)
    return cache_root() / "unfinished" / f"{prefix}{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}"


@contextmanager
def full_disk_told(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"no space left in {Path(folder).parent}, where the candidates are built",
            hint="free some space, or set TMPDIR to a place that has it",
        ) from error
