"""Why devices failed in a rollout."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rollout_devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("failure", sa.Text(), nullable=True))
    # Theirs was told of the device alone, which may say something else by now.
    op.execute("UPDATE rollout_devices SET failure = '' WHERE state IN ('wrong', 'lost')")
