"""Jobs made through the storage layer alone: no client, no worker."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import Connection, text

from contracts.canonical import canonicalize, digest
from contracts.errors import ItemFailed
from contracts.models import ModelSpec
from contracts.names import DEFAULT_POOL
from contracts.params import parse_params
from contracts.states import Priority
from storage import claims, inputs, jobs, models, results, sealing, shards
from storage.counting import ShardOutcome
from storage.database import Database
from storage.inputs import Line
from storage.shards import Lease

MINUTE = timedelta(minutes=1)


def make_model(connection: Connection, name: str = "model", **changes: Any) -> ModelSpec:
    values = {
        "source": "fake:",
        "revision": None,
        "task": "embed",
        "quantization": "none",
        "engine": "fake",
        "pool": DEFAULT_POOL,
        "digest": "",
        "files": [],
        "memory_bytes": 0,
    }
    return models.add(connection, name=name, **(values | changes))


def make_target(database: Database, name: str = "model", **changes: Any) -> int:
    with database.transaction() as connection:
        model = make_model(connection, name, **changes)
        return models.make_target(connection, model, parse_params(model.task, {}))


def as_lines(payloads: Iterable[Any], *, start: int = 0, custom_ids: Sequence[str | None] | None = None) -> list[Line]:
    canonical = [canonicalize(payload) for payload in payloads]
    ids = custom_ids or [None] * len(canonical)
    return [Line(start + i, ids[i], digest(data), data) for i, data in enumerate(canonical)]


def open_job(
    database: Database, target_id: int, *, pool: str = DEFAULT_POOL, priority: Priority = Priority.NORMAL
) -> UUID:
    with database.transaction() as connection:
        return jobs.open_job(connection, target_id=target_id, pool=pool, priority=priority, metadata={})


def append(database: Database, job_id: UUID, lines: Sequence[Line]) -> None:
    with database.transaction() as connection:
        arrived = jobs.arrived(connection, job_id)
        jobs.count_received(connection, job_id, len(lines), before=0 if arrived is None else arrived.lines)
        inputs.append(connection, job_id, lines)


def seal(
    database: Database,
    job_id: UUID,
    target_id: int,
    *,
    tokens: int | None = 10**6,
    per_shard: int = 1000,
    expires_in: timedelta | None = None,
) -> int:
    with database.transaction() as connection:
        return sealing.seal(
            connection, job_id, target_id, shard_tokens=tokens, shard_inputs=per_shard, expires_in=expires_in
        )


def submit(
    database: Database,
    target_id: int,
    payloads: Iterable[Any],
    *,
    pool: str = DEFAULT_POOL,
    priority: Priority = Priority.NORMAL,
    tokens: int = 10**6,
    per_shard: int = 1000,
) -> UUID:
    job_id = open_job(database, target_id, pool=pool, priority=priority)
    append(database, job_id, as_lines(payloads))
    seal(database, job_id, target_id, tokens=tokens, per_shard=per_shard)
    return job_id


def claim(database: Database, *, pool: str = DEFAULT_POOL, lease: timedelta = MINUTE, **how: Any) -> Lease | None:
    with database.transaction() as connection:
        return claims.claim(connection, pool=pool, worker="test", lease=lease, **how)


def claimed(database: Database, **how: Any) -> Lease:
    lease = claim(database, **how)
    assert lease is not None
    return lease


def store(
    database: Database,
    target_id: int,
    shard_id: UUID,
    input_ids: Sequence[int],
    *,
    outputs: results.Outputs | None = None,
    truncated: Sequence[int] = (),
) -> int:
    """Write results, as the shard would; vectors of one float, the input's id, when none are given."""
    ids = np.array(input_ids, dtype=np.int64)
    new = results.NewResults(
        target_id=target_id,
        input_ids=ids,
        shard_ids=np.tile(results.shard_bytes(shard_id), (len(ids), 1)),
        truncated=np.isin(ids, list(truncated)),
        outputs=ids.astype(np.float32)[:, None] if outputs is None else outputs,
    )
    with database.transaction() as connection:
        return results.insert(connection, new)


def finish(
    database: Database, lease: Lease, errors: Mapping[int, ItemFailed] | None = None, *, truncated: Sequence[int] = ()
) -> bool:
    """Store results of all inputs but the failing ones, and close the shard."""
    errors = dict(errors or {})
    good = [input_id for input_id in lease.input_ids if input_id not in errors]
    store(database, lease.target_id, lease.shard_id, good, truncated=truncated)
    with database.transaction() as connection:
        return shards.close(connection, lease, ShardOutcome(errors))


def expire(database: Database, *leases: Lease) -> None:
    """Let leases run out, as a worker's death would."""
    statement = "UPDATE shards SET lease_expires_at = now() - interval '1 second' WHERE token = ANY(:tokens)"
    execute(database, statement, tokens=[lease.token for lease in leases])


@contextmanager
def outage(database: Database) -> Iterator[None]:
    """Postgres lets nobody into the database meanwhile, and has sent away whoever was there."""
    name = database.url.database
    server = database.url.set(database="batchmill").render_as_string(hide_password=False)
    with Database(server) as other:
        execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"
            execute(other, end, name=name)
            yield
        finally:
            execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def query(database: Database, statement: str, **values: Any) -> list[Any]:
    with database.transaction() as connection:
        return list(connection.execute(text(statement), values))


def execute(database: Database, statement: str, **values: Any) -> None:
    with database.transaction() as connection:
        connection.execute(text(statement), values)
