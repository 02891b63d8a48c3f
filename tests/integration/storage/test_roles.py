"""What each role may do, by doing it, and what it may not, by trying."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from contracts.compression import CompressionSpec, StepProgress
from contracts.errors import ConfigurationError
from contracts.names import COMPRESSION_POOL
from contracts.params import COMPRESS
from contracts.recipes import parse_recipe
from contracts.states import DeliveryState, Priority
from storage import (
    compressions,
    deliveries,
    endpoints,
    inputs,
    jobs,
    lostruns,
    models,
    retention,
    roles,
    runs,
    schedules,
    schema,
)
from storage.database import Database
from storage.deliveries import Outcome
from storage.retention import Purged, Retention
from storage.roles import MIGRATOR, PRODUCER, READER, WEBHOOKS, WORKER, as_role
from storage.tables import metadata
from tests.compressions import close, report, result
from tests.jobs import as_lines, claim, execute, finish, make_model, make_target, query, seal, submit
from tests.runs import add, claimed, expire, score, spec

OURS = [role.name for role in roles.ROLES]


@pytest.fixture(scope="module")
def role_url(make_database: Callable[..., str]) -> Callable[[str], str]:
    """The address of a database of this module's own, as a role."""
    url = make_database()
    roles.apply(url)
    return lambda role: as_role(url, role)


@pytest.fixture
def open_as(role_url: Callable[[str], str]) -> Iterator[Callable[[str], Database]]:
    opened = []

    def connect(role: str) -> Database:
        opened.append(Database(role_url(role)))
        return opened[-1]

    yield connect
    for database in opened:
        database.close()


FORBIDDEN = {
    MIGRATOR: ["CREATE ROLE more", "COPY jobs TO PROGRAM 'true'", "ALTER ROLE batchmill_worker SUPERUSER"],
    PRODUCER: [
        "INSERT INTO results (input_id, target_id, shard_id, truncated, output) VALUES (1, 1, uuidv7(), false, '1')",
        "UPDATE results SET truncated = true",
        "DELETE FROM results",
        "UPDATE inputs SET payload = '1'",
        "DELETE FROM inputs",
        "UPDATE items SET input_id = 1",
        "DELETE FROM shards",
        "INSERT INTO item_errors (job_id, input_id, code, message) VALUES (uuidv7(), 1, 'x', 'x')",
        "UPDATE targets SET epoch = 0",
        "DELETE FROM models",
        "DELETE FROM webhook_endpoints",
        "UPDATE batch_budgets SET budget_tokens = 1",
        "UPDATE compressions SET verdict = 'accepted'",
        "DELETE FROM compressions",
        "SELECT * FROM chores",
        "DELETE FROM runs",
    ],
    WORKER: [
        "UPDATE schedules SET cron = '* * * * *'",
        "DELETE FROM schedules",
        "INSERT INTO jobs (target_id, pool, state, priority) VALUES (1, 'default', 'queued', 0)",
        "INSERT INTO items (job_id, position, input_id) VALUES (uuidv7(), 0, 1)",
        "INSERT INTO inputs (digest, payload, size) VALUES ('', '1', 1)",
        "UPDATE results SET truncated = true",
        "UPDATE models SET source = 'elsewhere'",
        "DELETE FROM models",
        "INSERT INTO compressions (job_id, name, recipe, accept, teachers) VALUES (uuidv7(), '', '[]', '{}', '{}')",
        "UPDATE compressions SET recipe = '[]'",
        "UPDATE targets SET epoch = 0",
        "DELETE FROM deliveries",
        "UPDATE deliveries SET state = 'delivered'",
        "SELECT secret FROM webhook_endpoints",
        "SELECT previous_secret FROM webhook_endpoints",
        "UPDATE webhook_endpoints SET url = 'https://elsewhere'",
    ],
    WEBHOOKS: [
        "SELECT * FROM inputs",
        "SELECT * FROM results",
        "SELECT * FROM items",
        "SELECT * FROM jobs",
        "SELECT * FROM models",
        "SELECT * FROM runs",
        "SELECT * FROM schedules",
        "UPDATE deliveries SET body = '{}'",
        "UPDATE deliveries SET url = 'https://elsewhere'",
        "INSERT INTO deliveries (endpoint_id, url, event, body) VALUES (1, '', '', '{}')",
        "DELETE FROM deliveries",
        "UPDATE webhook_endpoints SET url = 'https://elsewhere'",
        "UPDATE webhook_endpoints SET secret = ''",
        "DELETE FROM webhook_endpoints",
    ],
    READER: [
        "SELECT * FROM webhook_endpoints",
        "SELECT secret FROM webhook_endpoints",
        "SELECT previous_secret FROM webhook_endpoints",
        "SELECT spec FROM schedules",
        "SELECT spec FROM runs",
        *(f"DELETE FROM {table}" for table in metadata.tables),
    ],
}
FORBIDDEN_TO_ALL_BUT_THE_MIGRATOR = [
    "CREATE TABLE more (n bigint)",
    "ALTER TABLE jobs ADD COLUMN more bigint",
    "DROP TABLE jobs",
    "TRUNCATE results",
    "UPDATE alembic_version SET version_num = '0001'",
    "SET ROLE batchmill_migrator",
]


@pytest.mark.parametrize("role", OURS)
def test_what_a_role_may_not_do(open_as: Callable[[str], Database], role: str) -> None:
    database = open_as(role)
    for statement in FORBIDDEN[role] + ([] if role == MIGRATOR else FORBIDDEN_TO_ALL_BUT_THE_MIGRATOR):
        with pytest.raises(ProgrammingError) as refused, database.transaction() as connection:
            connection.execute(text(statement))
            pytest.fail(f"{role}: {statement}")
        assert isinstance(refused.value.orig, InsufficientPrivilege), f"{role}: {statement}: {refused.value}"


def test_a_job_passes_from_role_to_role(open_as: Callable[[str], Database]) -> None:
    producer, worker, webhooks, reader = (open_as(role) for role in (PRODUCER, WORKER, WEBHOOKS, READER))
    for database in (producer, worker, webhooks, reader):
        with database.transaction() as connection:
            schema.check(connection)
    target_id = make_target(producer)
    with producer.transaction() as connection:
        endpoint = endpoints.add(connection, "https://example.org/hook", b"encrypted")
    submit(producer, target_id, "abc")
    execute(producer, "UPDATE jobs SET endpoint_id = :id, callback_url = 'https://example.org/hook'", id=endpoint.id)
    lease = claim(worker)
    assert lease is not None
    finish(worker, lease)
    submit(producer, target_id, "cd")
    with webhooks.transaction() as connection:
        (sent,) = deliveries.claim(connection, free={}, fresh=5, room=5, hold=timedelta(minutes=1))
        outcome = Outcome(sent.id, sent.token, DeliveryState.DELIVERED, 200, None)
        assert deliveries.finish(connection, [outcome]) == 1
        assert endpoints.disable(connection, endpoint.id, "gone")
    assert query(reader, "SELECT state FROM deliveries") == [("delivered",)]
    assert query(reader, "SELECT count(*) FROM results") == [(3,)]
    assert query(reader, "SELECT url, disabled_reason FROM webhook_endpoints") == [("https://example.org/hook", "gone")]
    now = Retention(timedelta(microseconds=1), timedelta(microseconds=1))
    assert retention.purge(worker, now) == Purged(jobs=1, items=3, runs=0, results=2, inputs=2)


def test_so_does_a_run_of_a_schedule(open_as: Callable[[str], Database]) -> None:
    producer, worker = open_as(PRODUCER), open_as(WORKER)
    url = "https://example.org/runs"
    with producer.transaction() as connection:
        endpoints.add(connection, url, b"encrypted")
    add(producer, cron="* * * * *", overlap="cancel", spec=spec(callback_url=url))
    due = "UPDATE schedules SET next_due_at = date_trunc('minute', now())"
    target_id = make_target(producer)
    execute(producer, due)
    assert schedules.make_due(worker)
    job_id = score(producer, claimed(producer), target_id, ["run of a role"])
    execute(producer, "UPDATE runs SET due_at = due_at - interval '1 day'")
    execute(producer, due)
    assert schedules.make_due(worker)  # which ends the other, with its job
    assert query(producer, "SELECT state FROM jobs WHERE id = :id", id=job_id) == [("cancelled",)]
    with producer.transaction() as connection:
        runs.fail(connection, claimed(producer).token, "code", "message")
    assert query(producer, "SELECT event FROM deliveries WHERE run_id IS NOT NULL") == [("run.failed",)]
    with producer.transaction() as connection:
        lost = schedules.run_now(connection, "nightly")
    lease = claimed(producer)
    execute(producer, "UPDATE runs SET deaths = :most WHERE id = :id", most=runs.MOST_DEATHS, id=lease.run.id)
    expire(producer, lease)
    with worker.transaction() as connection:
        assert lostruns.fail(connection) == [lost.id]
    assert query(producer, "SELECT event FROM deliveries WHERE run_id = :id", id=lost.id) == [("run.failed",)]
    execute(producer, "UPDATE deliveries SET state = 'delivered' WHERE run_id IS NOT NULL")
    retention.purge(worker, Retention(timedelta(microseconds=1), None))
    assert query(producer, "SELECT id FROM runs") == []
    with producer.transaction() as connection:
        schedules.remove(connection, "nightly")


def test_so_does_a_compression(open_as: Callable[[str], Database]) -> None:
    with open_as(PRODUCER).transaction() as connection:
        target_id = models.make_target(connection, make_model(connection, "parent"), COMPRESS)
        job_id = jobs.open_job(
            connection, target_id=target_id, pool=COMPRESSION_POOL, priority=Priority.NORMAL, metadata={}
        )
        recipe = parse_recipe([{"step": "quantize", "method": "nf4"}])
        compressions.create(connection, job_id, CompressionSpec(name="child", recipe=recipe))
        jobs.count_received(connection, job_id, 1)
        inputs.append(connection, job_id, as_lines([{"finish": str(job_id)}]))
    seal(open_as(PRODUCER), job_id, target_id)
    worker = open_as(WORKER)
    lease = claim(worker, pool=COMPRESSION_POOL)
    assert lease is not None
    with worker.transaction() as connection:
        at_work = StepProgress(position=1, title="quantize nf4", fraction=0.5)
        assert compressions.note_progress(connection, lease, at_work)
        made = compressions.finish(connection, lease, report=report(job_id), **result())
    close(worker, lease)
    with open_as(READER).transaction() as connection:
        assert compressions.info(connection, job_id).model == made.reference == "child@1"


def test_the_migrator_brings_an_empty_database_up_to_date_and_back(make_database: Callable[..., str]) -> None:
    url = make_database(migrated=False)
    with Database(url) as owner:
        execute(owner, "CREATE EXTENSION vector")  # its library is code: that is for who owns the server
    roles.apply(url)
    schema.upgrade(as_role(url, MIGRATOR))
    roles.apply(as_role(url, MIGRATOR))  # owns them, so that it may give the rights
    with Database(as_role(url, READER)) as reader, reader.transaction() as connection:
        schema.check(connection)
    schema.downgrade(as_role(url, MIGRATOR), "0001")
    schema.upgrade(as_role(url, MIGRATOR))


def test_tables_of_another_owner_are_taken_over_and_rights_beyond_ours_taken_back(database: Database) -> None:
    url = database.url.render_as_string()
    roles.apply(url)
    execute(database, "GRANT ALL ON results, webhook_endpoints TO batchmill_webhooks")
    execute(database, "ALTER TABLE results OWNER TO batchmill")
    roles.apply(url)
    roles.apply(url)
    rights = "SELECT has_table_privilege('batchmill_webhooks', 'results', 'SELECT')"
    assert query(database, rights) == [(False,)]
    assert query(
        database, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'full_up'"
    ) == [(MIGRATOR,)]
    assert query(database, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'batchmill\\_%' AND rolsuper") == []


def test_who_may_create_roles_need_not_be_a_superuser(make_database: Callable[..., str]) -> None:
    url = make_database(migrated=False)
    admin = f"admin_{uuid4().hex[:8]}"
    with Database(url) as owner:
        name = owner.url.database
        for statement in (
            "CREATE EXTENSION vector",
            f"CREATE ROLE {admin} LOGIN CREATEROLE",
            f"ALTER DATABASE {name} OWNER TO {admin}",
            *(f"GRANT {role} TO {admin} WITH ADMIN OPTION" for role in OURS),
        ):
            execute(owner, statement)
    schema.upgrade(as_role(url, admin))
    roles.apply(as_role(url, admin))
    with Database(as_role(url, WORKER)) as worker, worker.transaction() as connection:
        schema.check(connection)


def test_a_superuser_of_that_name_is_refused(database: Database) -> None:
    url = database.url.render_as_string()
    roles.apply(url)
    execute(database, "ALTER ROLE batchmill_reader SUPERUSER")
    try:
        with pytest.raises(ConfigurationError, match="ALTER ROLE batchmill_reader NOSUPERUSER"):
            roles.apply(url)
    finally:
        execute(database, "ALTER ROLE batchmill_reader NOSUPERUSER")


def test_a_password_is_not_carried_over() -> None:
    assert as_role("postgresql://admin:secret@host:5432/db?sslmode=verify-full", WORKER) == (
        "postgresql://batchmill_worker@host:5432/db?sslmode=verify-full"
    )


def test_who_may_not_give_rights_is_told_so(database: Database, make_database: Callable[..., str]) -> None:
    url = database.url.render_as_string()
    roles.apply(url)
    with pytest.raises(ConfigurationError, match="batchmill_reader does not own the tables"):
        roles.apply(as_role(url, READER))
    with pytest.raises(ConfigurationError, match="CREATE on schema public is not yours to give"):
        roles.apply(as_role(make_database(migrated=False), READER))
