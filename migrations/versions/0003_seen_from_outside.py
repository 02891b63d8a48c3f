"""Seen from outside: workers say that they live, jobs carry their trace, and what a model takes is measured."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("models", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("model_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("memory_limit", sa.BigInteger(), nullable=False),
        sa.Column("inputs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("workers_pkey")),
    )
    op.add_column("jobs", sa.Column("traceparent", sa.Text(), nullable=True))
    op.add_column("batch_budgets", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("batch_budgets", sa.Column("load_seconds", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("batch_budgets", "load_seconds")
    op.drop_column("batch_budgets", "memory_bytes")
    op.drop_column("jobs", "traceparent")
    op.drop_table("workers")
