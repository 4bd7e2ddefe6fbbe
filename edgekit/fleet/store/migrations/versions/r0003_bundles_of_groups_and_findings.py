"""Bundles of groups, findings about devices, and what devices are held against."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column("device", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("metric", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("findings_to_devices"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", "kind", "metric", name=op.f("findings_key")),
    )
    with op.batch_alter_table("findings", schema=None) as batch_op:
        batch_op.create_index("findings_by_score", ["kind", "score"], unique=False)

    op.create_table(
        "reference_windows",
        sa.Column("device", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["device"], ["devices.id"], name=op.f("reference_windows_to_devices"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("device", "digest", name=op.f("reference_windows_key")),
    )
    with op.batch_alter_table("groups", schema=None) as batch_op:
        batch_op.add_column(sa.Column("wanted", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("wanted_at", sa.Float(), nullable=True))

    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("before", JSON, nullable=True))
