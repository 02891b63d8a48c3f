"""Many clients with the same inputs at the same moment: each input is stored once and computed once.

`BATCHMILL_RACE_CLIENTS` and `BATCHMILL_RACE_INPUTS` say how many.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.forked import ForkedMill, add_fake
from tests.jobs import query
from tests.properties.ledger import Ledger
from tests.properties.scale import count, say

CLIENTS = count("RACE_CLIENTS", 8)
INPUTS = count("RACE_INPUTS", 500)
THREADS = 8
"""Clients of one process, each with connections of its own."""

# They begin together, once all are ready; each hands the same inputs over in an order of its own.
_SCRIPT = """
import random, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from producer import Client

first, clients, inputs, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
together = Barrier(clients)

def race(number):
    texts = [f"{n} {'x' * (n % 200)}" for n in range(inputs)]
    random.Random(number).shuffle(texts)
    with Client() as client:
        client.models.get("fake")
        if together.wait(300) == 0:
            (folder / f"ready{first}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        job = client.submit("fake", texts)
        return job.id

with ThreadPoolExecutor(clients) as pool:
    for job in [pool.submit(race, first + number) for number in range(clients)]:
        print(job.result())
"""


@pytest.mark.timeout(1800)
def test_clients_that_race_leave_one_result_for_each_input(forked: ForkedMill, tmp_path: Path) -> None:
    with forked.client() as client:
        add_fake(client, "fake", "fake:?dimensions=2")
        forked.worker()
        forked.beat()
        environment = {**os.environ, **forked.environment, "BATCHMILL_HOME": str(forked.folder)}
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, str(first), str(min(THREADS, CLIENTS - first)), str(INPUTS), tmp_path],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for first in range(0, CLIENTS, THREADS)
        ]
        try:
            while len(list(tmp_path.glob("ready*"))) < len(racers):
                assert all(racer.poll() is None for racer in racers), [r.communicate() for r in racers]
                time.sleep(0.02)
            (tmp_path / "go").touch()
            began = time.monotonic()
            said = [racer.communicate(timeout=1500) for racer in racers]
        finally:
            for racer in racers:
                racer.kill()
                racer.wait()
        submitted = time.monotonic() - began
        assert [racer.returncode for racer in racers] == [0] * len(racers), said
        ids = [job_id for out, _ in said for job_id in out.split()]
        assert len(set(ids)) == CLIENTS
        for job_id in ids:
            job = client.job(job_id).wait(timeout=600)
            assert (job.counts.items, job.counts.distinct, job.counts.failed) == (INPUTS, INPUTS, 0)
            assert job.counts.cached + job.counts.computed == INPUTS
        say(
            f"{CLIENTS} clients × {INPUTS:,} inputs: taken in {submitted:.1f} s, "
            f"done after {time.monotonic() - began:.1f} s"
        )

        rows = "SELECT (SELECT count(*) FROM inputs), (SELECT count(*) FROM results), (SELECT sum(computed) FROM jobs)"
        assert query(client._database, rows) == [(INPUTS, INPUTS, INPUTS)]
        statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert query(client._database, statement) == [(0,)]
        ledger = Ledger(client._database)
        ledger.check()
        outcomes = ledger.outcomes()
        ledger.close()
        assert len(outcomes) == CLIENTS * INPUTS
        assert all(outcome.startswith("result of ") for outcome in outcomes.values())
