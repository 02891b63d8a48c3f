"""Real processes, each as the database role that is meant for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text
from typer.testing import CliRunner, Result

from contracts.errors import ConfigurationError
from contracts.states import JobState
from producer import Client
from producer.cli.session import Session
from stack.cli import app
from storage import roles
from storage.database import Database
from storage.roles import PRODUCER, READER, WEBHOOKS, WORKER, as_role
from tests.acceptance.forked import ForkedMill
from tests.conftest import wait_until
from worker.purging import CHORE


@pytest.fixture
def as_roles(forked: ForkedMill, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The mill's database as a role; the mill itself is a producer from here on."""
    url = forked.environment["BATCHMILL_DATABASE_URL"]
    roles.apply(url)
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("BATCHMILL_SECRET_KEY", key)
    monkeypatch.setenv("BATCHMILL_WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8")
    forked.environment["BATCHMILL_DATABASE_URL"] = as_role(url, PRODUCER)
    return lambda role: as_role(url, role)


def test_submit_work_control_retry_deliver_and_purge(forked: ForkedMill, as_roles: Callable[[str], str]) -> None:
    receiver = "https://127.0.0.1:1/hook"  # nobody listens there
    with forked.client() as client:
        worker = forked.worker(
            BATCHMILL_DATABASE_URL=as_roles(WORKER),
            BATCHMILL_RETAIN_JOBS_DAYS="1e-6",
            BATCHMILL_RETAIN_RESULTS_DAYS="1e-6",
        )
        forked.beat()
        deliverer = forked._start("worker.webhooks", _folder(forked.folder), BATCHMILL_DATABASE_URL=as_roles(WEBHOOKS))
        client.webhooks.add(receiver)
        client.models.add("vectors", "fake:?item_delay=0.001")
        first = client.submit("vectors", [f"text {n}" for n in range(50)], callback_url=receiver).wait(timeout=300)
        assert sum(result.output is not None for result in first.results()) == 50
        assert client.submit("vectors", [f"text {n}" for n in range(50)]).counts.cached == 50
        long = client.submit("vectors", [f"other {n}" for n in range(5000)])
        long.pause()
        long.resume()
        long.cancel()
        assert long.refresh().state is JobState.CANCELLED
        long.retry_failed().cancel()
        wait_until(lambda: _tried(client), 60)
        client.webhooks.disable(receiver)  # nothing is pending any more: the job may go
        client.models.invalidate("vectors")
        client.models.remove("vectors")
        assert deliverer.poll() is None
        with Database(as_roles(WORKER)) as database:
            with database.transaction() as connection:
                connection.execute(text("UPDATE chores SET due_at = now() WHERE name = :name"), {"name": CHORE})
            wait_until(lambda: not client.jobs(), 60)
            wait_until(lambda: "purged" in forked.log(worker), 60)
        for process in (worker, deliverer):
            forked.stop(process)
            assert "denied" not in forked.log(process)
            assert "Traceback" not in forked.log(process)


def test_the_command(forked: ForkedMill, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(url: str) -> Result:
        monkeypatch.setenv("BATCHMILL_DATABASE_URL", url)
        monkeypatch.setenv("BATCHMILL_BROKER_URL", forked.environment["BATCHMILL_BROKER_URL"])
        return CliRunner().invoke(app, ["roles", "apply"], obj=Session(forked.client))

    url = forked.environment["BATCHMILL_DATABASE_URL"]
    applied = apply(url)
    assert [line.split()[0] for line in applied.stdout.splitlines()[1:]] == [role.name for role in roles.ROLES]
    assert "ALTER ROLE" in applied.stderr
    assert isinstance(apply(as_role(url, READER)).exception, ConfigurationError)


def _tried(client: Client) -> bool:
    return any(delivery.last_error for delivery in client.webhooks.deliveries())


def _folder(folder: Path) -> Path:
    (folder / "webhooks").mkdir()
    return folder / "webhooks"
