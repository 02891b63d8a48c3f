"""The first schema: models, inputs, jobs, items, shards, results, and what later features stand on."""

import pgvector.sqlalchemy
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "inputs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("payload", postgresql.JSON(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("inputs_pkey")),
        sa.UniqueConstraint("digest", name=op.f("inputs_digest_key")),
    )
    op.create_table(
        "items",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("input_id", sa.BigInteger(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("items_pkey")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("files", postgresql.JSONB(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["models.id"], name=op.f("models_parent_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("models_pkey")),
        sa.UniqueConstraint("name", "version", name=op.f("models_name_version_key")),
    )
    op.create_table(
        "results",
        sa.Column("input_id", sa.BigInteger(), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("shard_id", sa.UUID(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("embedding", pgvector.sqlalchemy.VECTOR(), nullable=True),
        sa.Column("embedding_half", pgvector.sqlalchemy.HALFVEC(), nullable=True),
        sa.Column("embedding_bits", postgresql.BIT(varying=True), nullable=True),
        sa.Column("output", postgresql.JSONB(), nullable=True),
        sa.CheckConstraint(
            "num_nonnulls(embedding, embedding_half, embedding_bits, output) = 1", name=op.f("results_one_output_check")
        ),
        sa.PrimaryKeyConstraint("input_id", "target_id", name=op.f("results_pkey")),
    )
    op.create_table(
        "schedules",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("submission", postgresql.JSONB(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("schedules_pkey")),
        sa.UniqueConstraint("name", name=op.f("schedules_name_key")),
    )
    op.create_table(
        "batch_budgets",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("budget_tokens", sa.Integer(), nullable=False),
        sa.Column("tokens_per_second", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("batch_budgets_model_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "device", name=op.f("batch_budgets_pkey")),
    )
    op.create_table(
        "targets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("params", postgresql.JSONB(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("targets_model_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("targets_pkey")),
        sa.UniqueConstraint("fingerprint", name=op.f("targets_fingerprint_key")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("content_digest", sa.LargeBinary(), nullable=True),
        sa.Column("retry_of", sa.UUID(), nullable=True),
        sa.Column("items", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("distinct_inputs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("computed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("truncated", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("open_shards", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("service", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("micro_batches", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("real_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("padded_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("budget_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('receiving', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("jobs_state_check"),
        ),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name=op.f("jobs_retry_of_fkey")),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name=op.f("jobs_target_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
    )
    op.create_index(
        "jobs_claimable_idx",
        "jobs",
        ["pool", "priority", "service"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index("jobs_created_at_idx", "jobs", ["created_at"])
    op.create_index("jobs_idempotency_key_key", "jobs", ["idempotency_key"], unique=True)
    op.create_index("jobs_receiving_idx", "jobs", ["received_at"], postgresql_where=sa.text("state = 'receiving'"))
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
    op.create_table(
        "item_errors",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("input_id", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("item_errors_job_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "input_id", name=op.f("item_errors_pkey")),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("schedule_runs_job_id_fkey"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("schedule_runs_schedule_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("schedule_id", "due_at", name=op.f("schedule_runs_pkey")),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("parent_id", sa.UUID(), nullable=True),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("input_ids", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("estimated_tokens", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("token", sa.UUID(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'leased') = (token IS NOT NULL)", name=op.f("shards_lease_token_check")),
        sa.CheckConstraint(
            "state IN ('queued', 'leased', 'done', 'cancelled', 'split')", name=op.f("shards_state_check")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("shards_job_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["parent_id"], ["shards.id"], name=op.f("shards_parent_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("shards_pkey")),
    )
    op.create_index(
        "shards_claimable_idx", "shards", ["job_id", "ordinal"], postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index("shards_job_id_idx", "shards", ["job_id"])
    op.create_index("shards_leased_idx", "shards", ["lease_expires_at"], postgresql_where=sa.text("state = 'leased'"))


def downgrade() -> None:
    op.drop_table("shards")
    op.drop_table("schedule_runs")
    op.drop_table("item_errors")
    op.drop_table("deliveries")
    op.drop_table("compression_steps")
    op.drop_table("jobs")
    op.drop_table("targets")
    op.drop_table("batch_budgets")
    op.drop_table("schedules")
    op.drop_table("results")
    op.drop_table("models")
    op.drop_table("items")
    op.drop_table("inputs")
