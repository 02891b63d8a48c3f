"""Workers that die, hang or are cut off, and inputs that kill them: real processes, one mill each."""

import os
import signal
import socket
from pathlib import Path

import orjson
import pytest

from contracts.errors import JobFailed
from contracts.leaving import CUT_OFF
from contracts.states import JobState
from producer import Client
from stack.servers import servers
from storage.broker import TICK_QUEUE, Tickets, celery_app
from storage.rescue import rescue
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until
from tests.jobs import execute, query

SLOW = "fake:?item_delay=0.001"


class Supervisor:
    """Starts a worker again whenever it ends, and has its leases given back, as `batchmill up` does.

    What rests after a death rests no longer: how long it would is no matter here.
    """

    def __init__(self, mill: ForkedMill, client: Client) -> None:
        self._mill = mill
        self._database = client._database
        self._worker = mill.worker()
        self.deaths = 0

    def tend(self) -> None:
        if self._worker.poll() is None:
            return
        self.deaths += 1
        rescue(self._database, f"{socket.gethostname()}:{self._worker.pid}")
        execute(self._database, "UPDATE shards SET not_before = now() WHERE not_before > now()")
        self._worker = self._mill.worker()


def state_of(client: Client, statement: str) -> object:
    return query(client._database, statement)[0][0]


def test_inputs_that_kill_fail_alone(forked: ForkedMill) -> None:
    with forked.client() as client:
        add_fake(client, "deadly", "fake:?kill=deadly")
        add_fake(client, "harmless", SLOW)
        forked.beat()
        supervisor = Supervisor(forked, client)
        texts = [f"text {number}" for number in range(40)]
        strangers = client.submit("harmless", [f"stranger {number}" for number in range(2000)])
        job = client.submit("deadly", [*texts[:13], "a deadly one", *texts[13:]])

        def both_done() -> bool:
            supervisor.tend()
            return job.refresh().state.terminal and strangers.refresh().state.terminal

        wait_until(both_done, 240)
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


def test_a_model_that_kills_while_it_loads_fails_its_jobs(forked: ForkedMill) -> None:
    with forked.client() as client:
        client.models.add("monster", "fake:?load_kill=true")
        forked.beat()
        supervisor = Supervisor(forked, client)
        job = client.submit("monster", [f"text {number}" for number in range(100)])

        def done() -> bool:
            supervisor.tend()
            return job.refresh().state.terminal

        wait_until(done, 90)
        with pytest.raises(JobFailed, match=r"model_load_failed.*3 worker processes died while they loaded"):
            job.wait()
        assert supervisor.deaths == 4


def test_a_pass_that_never_ends_ends_its_worker(forked: ForkedMill) -> None:
    with forked.client() as client:
        client.models.add("hangs", "fake:?hang=forever")
        worker = forked.worker(BATCHMILL_LEASE_SECONDS="3", BATCHMILL_STALL_SECONDS="1")
        client.submit("hangs", ["it takes forever"])
        assert worker.wait(60) == 70
        assert "a micro-batch has not ended for 1 s" in forked.log(worker).splitlines()[-1]


def test_a_worker_that_was_frozen_writes_nothing_over_its_successor(forked: ForkedMill) -> None:
    with forked.client() as client:
        forked.beat()
        zombie = forked.worker(BATCHMILL_LEASE_SECONDS="2")
        add_fake(client, "slow", SLOW)
        job = client.submit("slow", [f"text {number}" for number in range(4000)])
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        zombie.send_signal(signal.SIGSTOP)
        held = query(client._database, "SELECT id, token FROM shards WHERE state = 'leased'")
        assert held
        forked.worker(BATCHMILL_LEASE_SECONDS="2")
        job.wait(timeout=300)
        before = query(client._database, "SELECT * FROM shards ORDER BY id")
        zombie.send_signal(signal.SIGCONT)
        wait_until(lambda: "was taken away" in forked.log(zombie) or "held by someone else" in forked.log(zombie), 60)
        forked.stop(zombie)
        assert query(client._database, "SELECT * FROM shards ORDER BY id") == before
        assert (job.refresh().counts.computed, job.counts.waiting) == (4000, 0)


def test_without_beat_an_idle_worker_makes_up_for_a_wiped_broker(
    forked: ForkedMill, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forked.client() as client:
        forked.worker()
        client.models.add("quick", "fake:")
        client.submit("quick", ["warm-up"]).wait(timeout=300)
        monkeypatch.setattr(Tickets, "publish", lambda *_: None)  # in this process: the worker has its own
        client.submit("quick", ["nobody was told of this"]).wait(timeout=300)


def test_a_worker_that_lost_its_broker_ends_itself(forked: ForkedMill, home: Path) -> None:
    with forked.client() as client, servers(home / "cut-off") as own:
        worker = forked.worker(BATCHMILL_BROKER_URL=own.broker_url, BATCHMILL_TICK_SECONDS="0.5")
        client.models.add("quick", "fake:")
        record = orjson.loads((home / "cut-off" / "run" / "valkey.pid").read_bytes())
        os.kill(record["identity"]["pid"], signal.SIGKILL)
        client.submit("quick", ["there is work"])  # by way of the broker that everybody else uses
        assert worker.wait(120) == CUT_OFF
        assert "its connection to the broker is broken, so it ends" in forked.log(worker)


LOADING, COMPUTING = "fake:?load_delay=60", "fake:?item_delay=0.01"


@pytest.mark.parametrize(
    ("model", "number"),
    [
        pytest.param(LOADING, signal.SIGTERM, id="loading-15"),
        pytest.param(LOADING, signal.SIGINT, id="loading-2", marks=pytest.mark.verify),  # it is given time to load
        pytest.param(COMPUTING, signal.SIGTERM, id="computing-15"),
        pytest.param(COMPUTING, signal.SIGINT, id="computing-2"),
    ],
)
def test_signals_end_a_worker_in_time_with_its_leases_given_back(
    forked: ForkedMill, model: str, number: signal.Signals
) -> None:
    with forked.client() as client:
        worker = forked.worker()
        add_fake(client, "model", model)
        job = client.submit("model", [f"text {i}" for i in range(3000)])
        wait_until(lambda: job.refresh().state is JobState.RUNNING, 60)
        os.kill(worker.pid, number)
        assert worker.wait(30) == 0, forked.log(worker)
        assert state_of(client, "SELECT count(*) FROM shards WHERE state = 'leased'") == 0
        assert state_of(client, "SELECT max(attempt) FROM shards") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_beat(forked: ForkedMill, broker_url: str, number: signal.Signals) -> None:
    beat = forked.beat()
    with celery_app(broker_url).connection_for_write() as connection, connection.channel() as channel:
        wait_until(lambda: TICK_QUEUE(channel).queue_declare().message_count > 0, 60)
    os.kill(beat.pid, number)
    assert beat.wait(30) == 0
