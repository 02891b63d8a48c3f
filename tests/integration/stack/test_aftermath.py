import os
import signal
from collections.abc import Callable
from pathlib import Path

from contracts.settings import Settings
from producer import Client
from stack.embedded import ensure, status
from stack.programs import WORKER
from tests.jobs import query

Eventually = Callable[..., None]


def worker_pid(settings: Settings) -> int | None:
    return next((child.pid for child in status(settings).children if child.name == WORKER), None)


def test_leases_of_a_killed_worker_do_not_wait_to_expire(home: Path, eventually: Eventually) -> None:
    settings = Settings(home=home, lease_seconds=600, tick_seconds=1, flower_port=0)
    addresses = ensure(settings)
    with Client(database_url=addresses.database_url, broker_url=addresses.broker_url, home=home) as client:
        client.models.add("slow", "fake:?item_delay=0.001")
        job = client.submit("slow", [f"text {number}" for number in range(3000)])
        eventually(lambda: job.refresh().counts.computed > 0, 60)
        victim = worker_pid(settings)
        assert victim is not None
        assert query(client._database, "SELECT FROM shards WHERE state = 'leased'")
        os.kill(victim, signal.SIGKILL)
        job.wait(timeout=300)
        assert (job.counts.computed, job.counts.waiting) == (3000, 0)
        assert query(client._database, "SELECT FROM shards WHERE alone AND deaths = 0 AND state = 'done'")
        assert worker_pid(settings) != victim
    assert f"process {victim} left" in (home / "logs" / "supervisor.log").read_text()
