"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "bundles",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("tiers", JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("new_bytes", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("signed_by", sa.String(length=64), nullable=False),
        sa.Column("pushed_at", sa.Float(), nullable=False),
        sa.Column("pushed_by", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("bundles_key")),
    )
    op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tick", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("clock_key")),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("tier", sa.String(length=16), nullable=False),
        sa.Column("standing", sa.String(length=16), nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("certificate_serial", sa.String(length=64), nullable=False),
        sa.Column("certificate_ends_at", sa.Float(), nullable=False),
        sa.Column("enrolled_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=True),
        sa.Column("boot", sa.String(length=32), nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("slot", JSON, nullable=False),
        sa.Column("running", sa.String(length=64), nullable=True),
        sa.Column("wanted", sa.String(length=64), nullable=True),
        sa.Column("kept", JSON, nullable=False),
        sa.Column("plan", JSON, nullable=True),
        sa.Column("latest", JSON, nullable=True),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("changed_tick", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("devices_key")),
        sa.UniqueConstraint("certificate_serial", name=op.f("devices_by_certificate_serial")),
        sa.UniqueConstraint("name", name=op.f("devices_by_name")),
        sa.UniqueConstraint("token_hash", name=op.f("devices_by_token_hash")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.create_index("devices_by_change", ["changed_tick"], unique=False)
        batch_op.create_index("devices_by_running", ["running"], unique=False)

    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("events_key")),
    )
    op.create_table(
        "groups",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("selector", sa.String(length=500), nullable=False),
        sa.Column("interval_s", sa.Float(), nullable=False),
        sa.Column("compare_share", sa.Float(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("groups_key")),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("ends_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("invitations_key")),
        sa.UniqueConstraint("token_hash", name=op.f("invitations_by_token_hash")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("ends_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("leases_key")),
    )
    op.create_table(
        "people",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("people_key")),
        sa.UniqueConstraint("token_hash", name=op.f("people_by_token_hash")),
    )
    op.create_table(
        "repeated",
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("repeated_key")),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("group", sa.String(length=63), nullable=False),
        sa.Column("active", sa.String(length=63), nullable=True),
        sa.Column("order", JSON, nullable=False),
        sa.Column("stages", JSON, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("stage_at", sa.Float(), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("waits", sa.Text(), nullable=False),
        sa.Column("verdicts", JSON, nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("started_by", sa.String(length=63), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("rollouts_key")),
        sa.UniqueConstraint("active", name=op.f("rollouts_by_active")),
    )
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.create_index("rollouts_by_start", ["started_at"], unique=False)

    op.create_table(
        "windows",
        sa.Column("device", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("answered", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.PrimaryKeyConstraint("device", "sequence", name=op.f("windows_key")),
    )
    with op.batch_alter_table("windows", schema=None) as batch_op:
        batch_op.create_index("windows_by_time", ["started_at"], unique=False)

    op.create_table(
        "bundle_files",
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["bundle"], ["bundles.digest"], name=op.f("bundle_files_to_bundles"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("bundle", "path", name=op.f("bundle_files_key")),
    )
    with op.batch_alter_table("bundle_files", schema=None) as batch_op:
        batch_op.create_index("bundle_files_by_content", ["sha256"], unique=False)

    op.create_table(
        "rollout_devices",
        sa.Column("rollout", sa.String(length=32), nullable=False),
        sa.Column("device", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=True),
        sa.Column("asked_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["device"], ["devices.id"], name=op.f("rollout_devices_to_devices"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollouts.id"], name=op.f("rollout_devices_to_rollouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("rollout_devices_key")),
    )
    with op.batch_alter_table("rollout_devices", schema=None) as batch_op:
        batch_op.create_index("rollout_devices_by_device", ["device"], unique=False)

    # The one row of the clock.
    op.execute("INSERT INTO clock (id, tick) VALUES (1, 0)")
