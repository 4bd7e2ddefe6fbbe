"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
% if "JSON" in upgrades:
from sqlalchemy.dialects import postgresql
% endif

revision = "${up_revision}"
down_revision = ${f'"{down_revision}"' if down_revision else None}
branch_labels = None
depends_on = None
% if "JSON" in upgrades:

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
% endif


def upgrade() -> None:
${upgrades}
