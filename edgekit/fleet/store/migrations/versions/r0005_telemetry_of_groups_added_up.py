"""Telemetry of groups added up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "spans",
        sa.Column("scope", sa.String(length=80), nullable=False),
        sa.Column("starts_at", sa.Float(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("part", sa.String(length=48), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.PrimaryKeyConstraint("scope", "starts_at", "digest", "part", name=op.f("spans_key")),
    )
    with op.batch_alter_table("spans", schema=None) as batch_op:
        batch_op.create_index("spans_by_time", ["starts_at"], unique=False)
