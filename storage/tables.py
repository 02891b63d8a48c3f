"""The tables, as SQLAlchemy sees them; `migrations/` makes them, and a test holds the two equal.

Only `inputs` has a random (digest) index: items, shards and results refer to its sequential bigint id, so that what
grows most is appended to. Times are the database's.
"""

from enum import StrEnum

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT, JSON, JSONB, UUID

from contracts.states import DeliveryState, JobState, RunState, ShardState

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _one_of(column: str, states: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(state.value) for state in states)})", name=column)


_OPEN_RUNS = ", ".join(repr(state.value) for state in RunState if not state.terminal)


def _time(name: str, *, default: bool = False) -> Column[object]:
    if default:
        return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())
    return Column(name, DateTime(timezone=True))


models = Table(
    "models",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("revision", Text),
    Column("task", Text, nullable=False),
    Column("quantization", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("1")),
    Column("digest", Text, nullable=False),
    Column("files", JSONB, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("parent_id", BigInteger, ForeignKey("models.id")),
    Column("recipe", JSONB),  # what made it of its parent
    Column("rejected", Boolean, nullable=False, server_default=text("false")),  # only `name@version` names it
    Column("fidelity", Double, nullable=False, server_default=text("1")),  # to float32, of a model that is `auto`
    _time("measure_from"),  # plans that were measured sooner are not used any more
    _time("created_at", default=True),
    _time("removed_at"),
    UniqueConstraint("name", "version"),
)

targets = Table(
    "targets",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False, unique=True),
    Column("model_id", BigInteger, ForeignKey("models.id"), nullable=False),
    Column("params", JSONB, nullable=False),
    Column("epoch", Integer, nullable=False),
    _time("created_at", default=True),
)

inputs = Table(
    "inputs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    # json, not jsonb: it keeps the canonical text to the letter (jsonb would turn 1e16 into an integer).
    Column("payload", JSON, nullable=False),
    Column("size", Integer, nullable=False),  # bytes of the canonical text
    _time("created_at", default=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("target_id", BigInteger, ForeignKey("targets.id"), nullable=False),
    Column("pool", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("idempotency_key", Text),
    Column("content_digest", LargeBinary),  # of all lines; of those received so far, while they arrive
    Column("retry_of", UUID, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("callback_url", Text),
    Column("endpoint_id", BigInteger, ForeignKey("webhook_endpoints.id", ondelete="SET NULL")),
    Column("progress_at", ARRAY(SmallInteger), nullable=False, server_default=text("'{}'")),  # percentages
    # Lines; every other count is of distinct inputs.
    Column("items", BigInteger, nullable=False, server_default=text("0")),
    Column("distinct_inputs", BigInteger, nullable=False, server_default=text("0")),
    Column("cached", BigInteger, nullable=False, server_default=text("0")),
    Column("computed", BigInteger, nullable=False, server_default=text("0")),
    Column("failed", BigInteger, nullable=False, server_default=text("0")),
    Column("truncated", BigInteger, nullable=False, server_default=text("0")),
    Column("open_shards", Integer, nullable=False, server_default=text("0")),
    # What it was served, in estimated tokens, and when last: what claims are fair by.
    Column("service", BigInteger, nullable=False, server_default=text("0")),
    _time("served_at"),
    # What its micro-batches looked like, summed over its shards.
    Column("micro_batches", Double, nullable=False, server_default=text("0")),
    Column("real_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("padded_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("budget_tokens", BigInteger, nullable=False, server_default=text("0")),
    # Inputs that an engine could not compute, one after the other, since it last could: what trips the breaker.
    Column("failed_in_row", BigInteger, nullable=False, server_default=text("0")),
    Column("error_code", Text),  # of a job that failed, or that the breaker paused
    Column("error_message", Text),
    Column("traceparent", Text),  # of the submission, as W3C Trace Context writes it
    _time("created_at", default=True),
    _time("received_at", default=True),
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at"),
    _time("expires_at"),
    _one_of("state", JobState),
    Index("jobs_idempotency_key_key", "idempotency_key", unique=True),
    Index("jobs_retry_of_key", "retry_of", unique=True),
    Index("jobs_expires_at_idx", "expires_at", postgresql_where=text("state IN ('queued', 'running', 'paused')")),
    Index(
        "jobs_claimable_idx",
        "pool",
        "priority",
        "service",
        postgresql_where=text("state IN ('queued', 'running')"),
    ),
    Index("jobs_receiving_idx", "received_at", postgresql_where=text("state = 'receiving'")),
    Index("jobs_received_at_idx", "received_at"),  # what a purge asks for while submissions wait
    Index("jobs_created_at_idx", "created_at"),
)

items = Table(
    "items",
    metadata,
    # No foreign keys: a check for each of a hundred million rows would cost more than the insert.
    Column("job_id", UUID, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("input_id", BigInteger, nullable=False),
    Column("custom_id", Text),
)

item_errors = Table(
    "item_errors",
    metadata,
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("input_id", BigInteger, primary_key=True),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    _time("created_at", default=True),
)

shards = Table(
    "shards",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("parent_id", UUID, ForeignKey("shards.id", ondelete="CASCADE")),
    Column("ordinal", Integer, nullable=False),  # the order of claims within the job
    Column("state", Text, nullable=False),
    Column("input_ids", ARRAY(BigInteger), nullable=False),  # longest input first
    Column("estimated_tokens", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("token", UUID),
    Column("worker", Text),
    # A shard whose worker died runs alone in its process next; only deaths while alone count against it.
    Column("alone", Boolean, nullable=False, server_default=text("false")),
    Column("loading", Boolean, nullable=False, server_default=text("false")),  # its model, when it was leased
    Column("deaths", SmallInteger, nullable=False, server_default=text("0")),
    Column("load_deaths", SmallInteger, nullable=False, server_default=text("0")),  # while its model was being loaded
    _time("lease_expires_at"),
    _time("not_before"),
    _time("finished_at"),
    _one_of("state", ShardState),
    CheckConstraint("(state = 'leased') = (token IS NOT NULL)", name="lease_token"),
    Index("shards_claimable_idx", "job_id", "ordinal", postgresql_where=text("state = 'queued'")),
    Index("shards_leased_idx", "lease_expires_at", postgresql_where=text("state = 'leased'")),
    Index("shards_job_id_idx", "job_id"),
    Index("shards_split_idx", "job_id", postgresql_where=text("state = 'split'")),
    Index("shards_alone_idx", "job_id", postgresql_where=text("state = 'queued' AND alone")),
    Index("shards_parent_id_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
)

results = Table(
    "results",
    metadata,
    # Input first: the planner cannot be led to scan a target that is newer than its statistics.
    Column("input_id", BigInteger, primary_key=True),
    Column("target_id", BigInteger, primary_key=True),
    Column("shard_id", UUID, nullable=False),
    Column("truncated", Boolean, nullable=False),
    # Exactly one of these holds the output.
    Column("embedding", VECTOR),
    Column("embedding_half", HALFVEC),
    Column("embedding_bits", BIT(varying=True)),
    Column("output", JSONB),
    CheckConstraint("num_nonnulls(embedding, embedding_half, embedding_bits, output) = 1", name="one_output"),
)

batch_budgets = Table(
    "batch_budgets",
    metadata,
    Column("model_id", BigInteger, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("device", Text, primary_key=True),
    Column("quantization", Text, nullable=False, server_default=text("'none'")),  # as held, of a model that is `auto`
    Column("dtype", Text, nullable=False, server_default=text("'float32'")),  # of the arithmetic
    Column("lanes", Integer, nullable=False, server_default=text("1")),
    Column("threads", Integer, nullable=False, server_default=text("1")),  # of a lane
    Column("rates", JSONB, nullable=False, server_default=text("'[]'")),  # all that was tried
    Column("budget_tokens", Integer, nullable=False),
    Column("ceiling_tokens", Integer),  # passes of more ran out of memory
    Column("tokens_per_second", Double, nullable=False),
    Column("memory_bytes", BigInteger),  # of the weights, once they were loaded
    Column("load_seconds", Double),
    _time("measured_at", default=True),
)

workers = Table(
    "workers",
    metadata,
    # For people to look at: what a worker says of itself now and then. Nothing is decided by it.
    Column("name", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("held", Integer, nullable=False, server_default=text("0")),  # shards
    Column("models", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),  # in memory
    Column("model_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("memory_limit", BigInteger, nullable=False),
    Column("disk_free", BigInteger),  # of one that compresses: where steps write
    Column("inputs", BigInteger, nullable=False, server_default=text("0")),  # computed since it started
    Column("tokens", BigInteger, nullable=False, server_default=text("0")),
    _time("started_at", default=True),
    _time("seen_at", default=True),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("url", Text, nullable=False, unique=True),
    # Encrypted; the previous one signs as well, until its time is over.
    Column("secret", LargeBinary, nullable=False),
    Column("previous_secret", LargeBinary),
    _time("previous_until"),
    _time("disabled_at"),
    Column("disabled_reason", Text),
    _time("created_at", default=True),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE")),
    Column("run_id", UUID, ForeignKey("runs.id", ondelete="CASCADE")),
    Column("endpoint_id", BigInteger, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("url", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("percent", SmallInteger),  # of `job.progress`
    Column("body", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("token", UUID),  # whose attempt is under way; it is due again at `due_at`
    _time("due_at", default=True),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    _time("created_at", default=True),
    _time("finished_at"),
    _one_of("state", DeliveryState),
    # A job says each thing once.
    Index(
        "deliveries_event_key",
        "job_id",
        "event",
        "percent",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=text("job_id IS NOT NULL"),
    ),
    Index("deliveries_run_event_key", "run_id", "event", unique=True, postgresql_where=text("run_id IS NOT NULL")),
    Index("deliveries_due_idx", "endpoint_id", "due_at", postgresql_where=text("state = 'pending'")),
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("overlap", Text, nullable=False),
    Column("catch_up", Text, nullable=False),
    _time("next_due_at"),  # None while it is paused
    _time("paused_at"),
    _time("created_at", default=True),
    Index("schedules_next_due_at_idx", "next_due_at", postgresql_where=text("next_due_at IS NOT NULL")),
)

runs = Table(
    "runs",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    # Without one a run is its caller's: nobody else carries it out.
    Column("schedule_id", BigInteger, ForeignKey("schedules.id", ondelete="CASCADE")),
    _time("due_at"),
    Column("state", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    # Who carries it out while it is read or written.
    Column("token", UUID),
    Column("runner", Text),
    _time("lease_expires_at"),
    _time("not_before"),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("deaths", SmallInteger, nullable=False, server_default=text("0")),  # of its holders, since it got on
    _time("stuck_since"),  # when it first rested for want of a server, since it got on
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("progress", JSONB, nullable=False, server_default=text("'{}'")),
    Column("written", JSONB),  # how far the sink is, as the sink itself puts it
    Column("changes", JSONB),
    Column("drift", JSONB),
    Column("report", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    _time("created_at", default=True),
    _time("started_at"),
    _time("finished_at"),
    _one_of("state", RunState),
    UniqueConstraint("schedule_id", "due_at"),
    CheckConstraint("(schedule_id IS NULL) = (due_at IS NULL)", name="due"),
    Index("runs_open_idx", "created_at", postgresql_where=text(f"state IN ({_OPEN_RUNS})")),
    Index("runs_job_id_idx", "job_id"),
    Index("runs_finished_at_idx", "finished_at"),
)

compressions = Table(
    "compressions",
    metadata,
    Column("job_id", UUID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, nullable=False),  # of the model that the result becomes a version of
    Column("recipe", JSONB, nullable=False),
    Column("evaluate", JSONB),
    Column("accept", JSONB, nullable=False),
    Column("teachers", JSONB, nullable=False),  # by the digest of a distillation's rows: the job that scores them
    Column("progress", JSONB),  # of the step that runs
    # What came of it: all of these, or none.
    Column("verdict", Text),
    Column("model_id", BigInteger, ForeignKey("models.id")),
    Column("report", JSONB),
    Column("html", JSONB),  # the report as a page: a file of the artifact store
    _time("created_at", default=True),
)

chores = Table(
    "chores",
    metadata,
    # What is done now and then, by whichever worker's tick finds it due.
    Column("name", Text, primary_key=True),
    Column("due_at", DateTime(timezone=True), nullable=False),
)
