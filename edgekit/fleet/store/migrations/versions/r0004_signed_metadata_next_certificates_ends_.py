"""Signed metadata, next certificates, ends of tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "signed",
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("ends_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name=op.f("signed_key")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("next_serial", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("next_ends_at", sa.Float(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("devices_by_next_serial"), ["next_serial"])

    with op.batch_alter_table("invitations", schema=None) as batch_op:
        batch_op.add_column(sa.Column("device", sa.String(length=32), nullable=True))

    with op.batch_alter_table("people", schema=None) as batch_op:
        batch_op.add_column(sa.Column("ends_at", sa.Float(), nullable=True))
