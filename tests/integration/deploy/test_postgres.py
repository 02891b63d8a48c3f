"""What deploy/ says to a Postgres, said to a real one."""

import os
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from sqlalchemy import text

from stack.servers import servers
from stack.wheels import postgres_install
from storage import control, roles, schema
from storage.database import Database
from tests.jobs import claimed, execute, make_target, query, submit

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture
def scaler_query() -> str:
    manifest = yaml.safe_load_all((DEPLOY / "kubernetes" / "keda" / "scaler.yaml").read_text())
    scaler = next(document for document in manifest if document["kind"] == "ScaledObject")
    return str(scaler["spec"]["triggers"][0]["metadata"]["query"])


def test_the_scaler_counts_work_that_is_left_as_the_reader_that_it_is(database: Database, scaler_query: str) -> None:
    roles.apply(database.url.render_as_string(hide_password=False))

    def counted() -> int:
        with database.transaction() as connection:
            connection.execute(text(f"SET LOCAL ROLE {roles.READER}"))
            return int(connection.execute(text(scaler_query)).scalar_one())

    assert counted() == 0
    target = make_target(database)
    job = submit(database, target, [f"text {n}" for n in range(40)], per_shard=10)
    other = make_target(database, "elsewhere", pool="other")
    submit(database, other, ["not ours"], pool="other")
    assert counted() == 4
    claimed(database)
    assert counted() == 4  # what is worked on keeps its worker
    execute(database, "UPDATE shards SET not_before = now() + interval '1 minute' WHERE state = 'queued'")
    assert counted() == 1
    execute(database, "UPDATE shards SET not_before = NULL")
    with database.transaction() as connection:
        control.cancel(connection, job)
    assert counted() == 0
    submit(database, target, [f"many {n}" for n in range(700)], per_shard=1)
    assert counted() == 600
    plan = "\n".join(row[0] for row in query(database, f"EXPLAIN {scaler_query}"))
    assert "shards_leased_idx" in plan


def test_a_new_database_has_roles_that_log_in_and_may_work_after_the_migration(home: Path) -> None:
    with servers(home / "fresh") as addresses:
        parts = urlsplit(addresses.database_url)
        host = parse_qs(parts.query)["host"][0]
        names = ("worker", "producer", "webhooks", "reader")
        environment = {
            "PATH": f"{postgres_install() / 'bin'}:{os.environ['PATH']}",
            "PGHOST": host,
            "POSTGRES_USER": "batchmill",
            "POSTGRES_DB": "batchmill",
            **{f"{name.upper()}_PASSWORD": f"it's {name}" for name in names},
        }
        subprocess.run([DEPLOY / "postgres" / "roles.sh"], env=environment, check=True)
        schema.upgrade(addresses.database_url)
        roles.apply(addresses.database_url)
        with Database(addresses.database_url) as database:
            passwords = "SELECT rolname, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolcanlogin"
            made = query(database, passwords)
        assert dict(map(tuple, made)) | {"batchmill": None} == {
            **{f"batchmill_{name}": True for name in names},
            roles.MIGRATOR: None,
            "batchmill": None,
        }
        with Database(roles.as_role(addresses.database_url, roles.WORKER)) as database:
            assert query(database, "SELECT count(*) FROM shards")[0][0] == 0
