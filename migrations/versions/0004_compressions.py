"""Compressions: what a job is asked to make of a model, how far it is and what came of it; models that were made so."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing ever wrote to it.
    op.drop_table("compression_steps")
    op.create_table(
        "compressions",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("recipe", postgresql.JSONB(), nullable=False),
        sa.Column("evaluate", postgresql.JSONB(), nullable=True),
        sa.Column("accept", postgresql.JSONB(), nullable=False),
        sa.Column("teachers", postgresql.JSONB(), nullable=False),
        sa.Column("progress", postgresql.JSONB(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("report", postgresql.JSONB(), nullable=True),
        sa.Column("html", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("compressions_job_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("compressions_model_id_fkey")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("compressions_pkey")),
    )
    op.add_column("models", sa.Column("recipe", postgresql.JSONB(), nullable=True))
    op.add_column("models", sa.Column("rejected", sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    op.drop_column("models", "rejected")
    op.drop_column("models", "recipe")
    op.drop_table("compressions")
    op.create_table(
        "compression_steps",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("step", postgresql.JSONB(), nullable=False),
        sa.Column("artifact", postgresql.JSONB(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("compression_steps_job_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("compression_steps_pkey")),
    )
