"""Workers that die, hang or are cut off, and inputs that kill them: real processes, one mill each."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from contracts.errors import JobFailed
from contracts.leaving import CUT_OFF
from contracts.states import JobState
from producer import Client
from stack.servers import servers
from storage.broker import TICK_QUEUE, Tickets, celery_app
from tests.conftest import Mill, wait_until
from tests.jobs import query

pytestmark = pytest.mark.alone
SLOW = "fake:?item_delay=0.001"


class Supervisor:
    """Starts a worker again whenever it ends, as `batchmill up`, compose or Kubernetes would."""

    def __init__(self, mill: Mill, **settings: str) -> None:
        self._start: Callable[[], object] = lambda: mill.worker(**settings)
        self._worker = mill.worker(**settings)
        self.deaths = 0

    def tend(self) -> None:
        if self._worker.poll() is not None:
            self.deaths += 1
            self._worker = self._start()


def state_of(client: Client, statement: str) -> object:
    return query(client._database, statement)[0][0]


def test_inputs_that_kill_fail_alone(mill: Mill) -> None:
    with mill.client() as client:
        client.models.add("deadly", "fake:?kill=deadly")
        client.models.add("harmless", SLOW)
        mill.beat()
        supervisor = Supervisor(mill, BATCHMILL_LEASE_SECONDS="1")
        texts = [f"text {number}" for number in range(40)]
        strangers = client.submit("harmless", [f"stranger {number}" for number in range(2000)])
        job = client.submit("deadly", [*texts[:13], "a deadly one", *texts[13:]])

        def both_done() -> bool:
            supervisor.tend()
            return job.refresh().state.terminal and strangers.refresh().state.terminal

        wait_until(both_done, 120)
        assert job.state is JobState.SUCCEEDED
        assert (job.counts.computed, job.counts.failed) == (40, 1)
        [failed] = [result for result in job.results() if result.error is not None]
        assert failed.position == 13
        assert failed.error is not None
        assert failed.error.code == "worker_lost"
        assert (strangers.counts.computed, strangers.counts.failed) == (2000, 0)
        # In company, alone with 40 others, alone with two, and three times by itself.
        assert supervisor.deaths == 6
        assert state_of(client, "SELECT max(deaths) FROM shards JOIN jobs ON jobs.id = job_id WHERE failed = 0") == 0


def test_a_model_that_kills_while_it_loads_fails_its_jobs(mill: Mill) -> None:
    with mill.client() as client:
        client.models.add("monster", "fake:?load_kill=true")
        mill.beat()
        supervisor = Supervisor(mill, BATCHMILL_LEASE_SECONDS="1")
        job = client.submit("monster", [f"text {number}" for number in range(100)])

        def done() -> bool:
            supervisor.tend()
            return job.refresh().state.terminal

        wait_until(done, 90)
        with pytest.raises(JobFailed, match=r"model_load_failed.*3 worker processes died while they loaded"):
            job.wait()
        assert supervisor.deaths == 4


def test_a_pass_that_never_ends_ends_its_worker(mill: Mill) -> None:
    with mill.client() as client:
        client.models.add("hangs", "fake:?hang=forever")
        worker = mill.worker(BATCHMILL_LEASE_SECONDS="3", BATCHMILL_STALL_SECONDS="1")
        client.submit("hangs", ["it takes forever"])
        assert worker.wait(30) == 70
        assert "a micro-batch has not ended for 1 s" in mill.log(worker).splitlines()[-1]


def test_a_worker_that_was_frozen_writes_nothing_over_its_successor(mill: Mill) -> None:
    with mill.client() as client:
        mill.beat()
        zombie = mill.worker(BATCHMILL_LEASE_SECONDS="2")
        client.models.add("slow", SLOW)
        job = client.submit("slow", [f"text {number}" for number in range(4000)])
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        zombie.send_signal(signal.SIGSTOP)
        held = query(client._database, "SELECT id, token FROM shards WHERE state = 'leased'")
        assert held
        mill.worker(BATCHMILL_LEASE_SECONDS="2")
        job.wait(timeout=60)
        before = query(client._database, "SELECT * FROM shards ORDER BY id")
        zombie.send_signal(signal.SIGCONT)
        wait_until(lambda: "was taken away" in mill.log(zombie) or "held by someone else" in mill.log(zombie))
        mill.stop(zombie)
        assert query(client._database, "SELECT * FROM shards ORDER BY id") == before
        assert (job.refresh().counts.computed, job.counts.waiting) == (4000, 0)


def test_without_beat_an_idle_worker_makes_up_for_a_wiped_broker(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    with mill.client() as client:
        mill.worker()
        client.models.add("quick", "fake:")
        client.submit("quick", ["warm-up"]).wait(timeout=60)
        monkeypatch.setattr(Tickets, "publish", lambda *_: None)  # in this process: the worker has its own
        client.submit("quick", ["nobody was told of this"]).wait(timeout=30)


def test_a_worker_that_lost_its_broker_ends_itself(mill: Mill, home: Path) -> None:
    with mill.client() as client, servers(home / "cut-off") as own:
        worker = mill.worker(BATCHMILL_BROKER_URL=own.broker_url, BATCHMILL_TICK_SECONDS="0.5")
        client.models.add("quick", "fake:")
        record = orjson.loads((home / "cut-off" / "run" / "valkey.pid").read_bytes())
        os.kill(record["identity"]["pid"], signal.SIGKILL)
        client.submit("quick", ["there is work"])  # by way of the broker that everybody else uses
        assert worker.wait(40) == CUT_OFF
        assert "its connection to the broker is broken, so it ends" in mill.log(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("model", ["fake:?load_delay=60", "fake:?item_delay=0.01"], ids=["loading", "computing"])
def test_signals_end_a_worker_in_time_with_its_leases_given_back(
    mill: Mill, number: signal.Signals, model: str
) -> None:
    with mill.client() as client:
        worker = mill.worker()
        client.models.add("model", model)
        job = client.submit("model", [f"text {i}" for i in range(3000)])
        wait_until(lambda: job.refresh().state is JobState.RUNNING, 30)
        os.kill(worker.pid, number)
        assert worker.wait(30) == 0, mill.log(worker)
        assert state_of(client, "SELECT count(*) FROM shards WHERE state = 'leased'") == 0
        assert state_of(client, "SELECT max(attempt) FROM shards") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_beat(mill: Mill, broker_url: str, number: signal.Signals) -> None:
    beat = mill.beat()
    with celery_app(broker_url).connection_for_write() as connection, connection.channel() as channel:
        wait_until(lambda: TICK_QUEUE(channel).queue_declare().message_count > 0, 60)
    os.kill(beat.pid, number)
    assert beat.wait(30) == 0
