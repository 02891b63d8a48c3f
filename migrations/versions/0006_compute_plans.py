"""Compute plans in place of budgets, the fidelity that a model is held to, and a wish that it is measured anew."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PLAN = ("quantization", "dtype", "lanes", "threads", "rates")


def upgrade() -> None:
    # Kinds of devices have other names now, and what was measured says nothing of lanes: workers measure anew.
    op.execute("DELETE FROM batch_budgets")
    op.add_column(
        "batch_budgets", sa.Column("quantization", sa.Text(), server_default=sa.text("'none'"), nullable=False)
    )
    op.add_column("batch_budgets", sa.Column("dtype", sa.Text(), server_default=sa.text("'float32'"), nullable=False))
    op.add_column("batch_budgets", sa.Column("lanes", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("batch_budgets", sa.Column("threads", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column(
        "batch_budgets", sa.Column("rates", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    )
    op.add_column("models", sa.Column("fidelity", sa.Double(), server_default=sa.text("1"), nullable=False))
    op.add_column("models", sa.Column("measure_from", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("models", "measure_from")
    op.drop_column("models", "fidelity")
    for name in reversed(PLAN):
        op.drop_column("batch_budgets", name)
