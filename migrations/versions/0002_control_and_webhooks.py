"""Control, rescue, webhooks and retention: endpoints and deliveries, shards that run alone, what a purge looks for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_endpoints_pkey")),
        sa.UniqueConstraint("url", name=op.f("webhook_endpoints_url_key")),
    )

    # Nothing wrote deliveries before.
    op.drop_table("deliveries")
    op.create_table(
        "deliveries",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=True),
        sa.Column("endpoint_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("percent", sa.SmallInteger(), nullable=True),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("token", sa.UUID(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_status", sa.SmallInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("deliveries_state_check")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("deliveries_job_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("deliveries_endpoint_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
    )
    op.create_index(
        "deliveries_event_key",
        "deliveries",
        ["job_id", "event", "percent"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("job_id IS NOT NULL"),
    )
    op.create_index(
        "deliveries_due_idx", "deliveries", ["endpoint_id", "due_at"], postgresql_where=sa.text("state = 'pending'")
    )

    op.add_column("jobs", sa.Column("callback_url", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("endpoint_id", sa.BigInteger(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column("progress_at", postgresql.ARRAY(sa.SmallInteger()), server_default=sa.text("'{}'"), nullable=False),
    )
    op.add_column("jobs", sa.Column("failed_in_row", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_foreign_key(
        op.f("jobs_endpoint_id_fkey"), "jobs", "webhook_endpoints", ["endpoint_id"], ["id"], ondelete="SET NULL"
    )
    op.drop_constraint("jobs_retry_of_fkey", "jobs", type_="foreignkey")
    op.create_foreign_key(op.f("jobs_retry_of_fkey"), "jobs", "jobs", ["retry_of"], ["id"], ondelete="SET NULL")
    op.create_index("jobs_retry_of_key", "jobs", ["retry_of"], unique=True)
    op.create_index(
        "jobs_expires_at_idx",
        "jobs",
        ["expires_at"],
        postgresql_where=sa.text("state IN ('queued', 'running', 'paused')"),
    )

    op.add_column("shards", sa.Column("alone", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("shards", sa.Column("loading", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("shards", sa.Column("deaths", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("shards", sa.Column("load_deaths", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index("shards_split_idx", "shards", ["job_id"], postgresql_where=sa.text("state = 'split'"))
    op.create_index("shards_alone_idx", "shards", ["job_id"], postgresql_where=sa.text("state = 'queued' AND alone"))

    op.create_index("jobs_received_at_idx", "jobs", ["received_at"])
    op.create_index("shards_parent_id_idx", "shards", ["parent_id"], postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.create_index("schedule_runs_job_id_idx", "schedule_runs", ["job_id"])
    op.create_table(
        "chores",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("chores_pkey")),
    )

    op.add_column(
        "inputs", sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    )
    op.add_column("batch_budgets", sa.Column("ceiling_tokens", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("batch_budgets", "ceiling_tokens")
    op.drop_column("inputs", "created_at")

    op.drop_table("chores")
    op.drop_index("schedule_runs_job_id_idx", "schedule_runs")
    op.drop_index("shards_parent_id_idx", "shards")
    op.drop_index("jobs_received_at_idx", "jobs")

    op.drop_index("shards_alone_idx", "shards")
    op.drop_index("shards_split_idx", "shards")
    for column in ("load_deaths", "deaths", "loading", "alone"):
        op.drop_column("shards", column)

    op.drop_index("jobs_expires_at_idx", "jobs")
    op.drop_index("jobs_retry_of_key", "jobs")
    op.drop_constraint("jobs_retry_of_fkey", "jobs", type_="foreignkey")
    op.create_foreign_key(op.f("jobs_retry_of_fkey"), "jobs", "jobs", ["retry_of"], ["id"])
    for column in ("failed_in_row", "progress_at", "endpoint_id", "callback_url"):
        op.drop_column("jobs", column)

    op.drop_table("deliveries")
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("deliveries_state_check")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("deliveries_job_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
    )
    op.create_index("deliveries_due_idx", "deliveries", ["due_at"], postgresql_where=sa.text("state = 'pending'"))
    op.drop_table("webhook_endpoints")
