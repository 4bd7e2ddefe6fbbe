"""Writes the next revision: python -m edgekit.fleet.store.migrations "What it does"."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import JSON, create_engine

from edgekit.errors import EdgekitError, UsageError
from edgekit.fleet.store.schema import head, revisions, upgrade
from edgekit.fleet.store.tables import Base


def write_revision(message: str) -> Path:
    """Its file. Raises UsageError where the tables are what the revisions make."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/now.db")
        upgrade(engine)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            operations = produce_migrations(context, Base.metadata).upgrade_ops
        engine.dispose()
    if operations is None or operations.is_empty():
        raise UsageError("the tables are what the revisions make", hint="change edgekit/fleet/store/tables.py first")
    known, last = revisions(), head()
    made = known.generate_revision(f"{int(last) + 1:04}", message, head=last, upgrades=_rendered(operations))
    assert made is not None
    return Path(made.path)


def _rendered(operations: UpgradeOps) -> str:
    # By way of a batch: SQLite changes a column only by copying its table.
    text = render_python_code(operations, render_as_batch=True, render_item=_render)
    kept = [line.rstrip() for line in f"    {text}".splitlines() if not line.strip().startswith("# ###")]
    return "\n".join(kept)


def _render(kind: str, found: object, _: object) -> str | Literal[False]:
    """How a type is written; False leaves it to Alembic."""
    return "JSON" if kind == "type" and isinstance(found, JSON) else False


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.stdout.write(f"{write_revision(sys.argv[1])}\n")
    except EdgekitError as error:
        sys.exit(str(error))
