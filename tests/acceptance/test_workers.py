"""What workers promise, seen from outside: real processes on a real database and a real broker."""

import signal
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM
from contracts.errors import JobFailed
from producer import Client
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import Mill, wait_until
from tests.faults.device import give_budget

SLOW, SLOWER = "fake:?item_delay=0.001", "fake:?item_delay=0.004"
"""How slow decides how long a job is: what is to be seen in its middle outlasts whoever looks, on any machine."""


def query(client: Client, statement: str) -> list[tuple[object, ...]]:
    with client._database.transaction() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def inputs(count: int, tag: str = "") -> list[str]:
    return [f"{tag} input {number:06d} ".ljust(100, "x") for number in range(count)]


@pytest.mark.alone
def test_two_workers_share_a_job(forked: ForkedMill) -> None:
    with forked.client() as client:
        forked.worker()
        forked.worker()
        add_fake(client, "slow", SLOW)
        client.submit("slow", inputs(4, "warm")).wait(timeout=300)
        job = client.submit("slow", inputs(6000)).wait(timeout=300)
        assert job.counts.computed == 6000
        shares = query(client, "SELECT sum(cardinality(input_ids)) FROM shards GROUP BY worker ORDER BY 1 DESC")
        assert len(shares) == 2, shares
        assert shares[1][0] >= 2000, shares


@pytest.mark.alone
def test_two_equal_jobs_at_once_compute_little_twice(forked: ForkedMill) -> None:
    with forked.client() as client:
        forked.worker()
        forked.worker()
        add_fake(client, "slow", SLOW)
        alone = client.submit("slow", inputs(400, "alone")).wait(timeout=300).info.stats.real_tokens
        first, second = (client.submit("slow", inputs(8000)) for _ in range(2))
        first.wait(timeout=300)
        second.wait(timeout=300)
        tokens = alone * 8000 // 400  # all inputs are of one length
        both = first.info.stats.real_tokens + second.info.stats.real_tokens
        assert tokens <= both <= 1.10 * tokens
        assert first.counts.computed + second.counts.computed == 8000
        assert first.counts.cached + second.counts.cached == 8000


def test_a_killed_worker_loses_nothing(forked: ForkedMill) -> None:
    with forked.client() as client:
        victim = forked.worker(BATCHMILL_LEASE_SECONDS="2")
        forked.beat()
        add_fake(client, "slow", SLOWER)
        job = client.submit("slow", inputs(1500))
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        forked.worker(BATCHMILL_LEASE_SECONDS="2")
        job.wait(timeout=300)
        assert job.counts.computed == 1500
        assert sum(result.output is not None for result in job.results()) == 1500
        assert query(client, "SELECT count(*) FROM shards WHERE attempt > 1")[0][0] > 0


def test_sigterm_gives_leases_back_at_once(forked: ForkedMill) -> None:
    with forked.client() as client:
        leaving = forked.worker()
        add_fake(client, "slow", SLOWER)
        job = client.submit("slow", inputs(1500))
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        leaving.terminate()
        assert leaving.wait(30) == 0, forked.log(leaving)
        assert query(client, "SELECT count(*) FROM shards WHERE state = 'leased'") == [(0,)]
        stored = query(client, "SELECT count(*) FROM results")[0][0]
        assert 0 < stored < 1500
        forked.worker()
        job.wait(timeout=300)
        assert job.counts.computed == 1500
        # Nothing that was stored was computed again: what ran is at most what there is, and the passes in flight.
        assert query(client, "SELECT max(attempt) FROM shards") == [(1,)]


def test_an_interactive_line_overtakes_a_bulk_job(forked: ForkedMill) -> None:
    with forked.client() as client:
        forked.worker()
        add_fake(client, "slow", SLOWER)
        client.submit("slow", inputs(4, "warm")).wait(timeout=300)
        bulk = client.submit("slow", inputs(5000), priority="bulk")
        wait_until(lambda: bulk.refresh().counts.computed > 0, 60)
        for number in range(5):
            # One of the four slots never takes bulk shards, however many wait.
            ((held,),) = query(client, "SELECT count(*) FROM shards WHERE state = 'leased'")
            assert held <= 3
            asked = client.submit("slow", [f"one line, {number}"], priority="interactive").wait(timeout=300)
            assert asked.counts.computed == 1
        assert not bulk.refresh().state.terminal
        assert bulk.counts.computed < 4000
        bulk.cancel()


def test_budgets_are_measured_once(mill: Mill, encoder: Path) -> None:
    measured_once(mill, encoder, "none")


@pytest.mark.verify
def test_budgets_of_a_real_model_are_measured_once(mill: Mill) -> None:
    measured_once(mill, MINILM, "bf16")


def measured_once(mill: Mill, model: Path, quantization: str) -> None:
    with mill.client() as client:
        client.models.add("measured", str(model), quantization=quantization)
        for number in range(2):
            worker = mill.worker()
            client.submit("measured", [f"text {number}"]).wait(timeout=300)
            mill.stop(worker)
            assert ("measured now" in mill.log(worker)) == (number == 0)
        ((tokens, speed),) = query(client, "SELECT budget_tokens, tokens_per_second FROM batch_budgets")
        assert 512 <= tokens <= 262_144
        assert speed > 100


def test_a_worker_on_another_host_fetches_and_verifies(forked: ForkedMill, encoder: Path) -> None:
    """Each worker of a mill has a home of its own, and only the artifact store in common."""
    with forked.client() as client:
        model = client.models.add("tiny", str(encoder))
        give_budget(client._database, model.id, 2048, 20_000.0)
        forked.worker()
        texts = stdlib_docstrings(300)
        job = client.submit("tiny", texts).wait(timeout=300)
        assert job.counts.computed == len(set(texts))
        assert (forked.folder / "worker0" / "cache").is_dir()

        weights = next(file for file in model.files if file.path == "model.safetensors")
        stored = Path(forked.environment["BATCHMILL_ARTIFACTS"]) / "sha256" / weights.sha256[:2] / weights.sha256
        with stored.open("r+b") as stream:
            stream.seek(weights.size // 2)
            stream.write(b"damaged")
        forked.worker(BATCHMILL_POOL="elsewhere")
        with client._database.transaction() as connection:
            connection.execute(text("UPDATE models SET pool = 'elsewhere' WHERE name = 'tiny'"))
        with pytest.raises(JobFailed, match=f"artifact_error.*model.safetensors.*{weights.sha256}"):
            client.submit("tiny", ["never computed before"]).wait(timeout=300)


def test_a_client_that_dies_midway_leaves_no_job_that_runs(forked: ForkedMill) -> None:
    with forked.client() as client:
        client.models.add("vectors", "fake:")
        forked.worker(BATCHMILL_ABANDON_SECONDS="1")
        forked.beat()
        dying = forked.run_client(
            """
            import os, signal
            from producer.incoming import CHUNK_LINES

            def dies():
                yield from (f"item {number}" for number in range(CHUNK_LINES))
                yield "one more"
                os.kill(os.getpid(), signal.SIGKILL)

            client.submit("vectors", dies())
            """
        )
        assert dying.returncode == -signal.SIGKILL
        wait_until(lambda: query(client, "SELECT count(*) FROM jobs") == [(0,)], 60)
        assert query(client, "SELECT count(*) FROM items") == [(0,)]
        assert query(client, "SELECT count(*) FROM shards") == [(0,)]


@pytest.mark.parametrize(
    ("count", "most"),
    [(100_000, 40_000_000), pytest.param(1_000_000, 200_000_000, marks=pytest.mark.verify)],
)
def test_many_items_take_little_memory(mill: Mill, count: int, most: int) -> None:
    with mill.client() as client:
        client.models.add("nobody", "fake:", pool="nobody")
    measured = mill.run_client(
        f"""
        import resource

        def used():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        # What a chunk takes is taken by now; what is kept of each line is not.
        client.submit("nobody", (f"warm-up {{number}}" for number in range(20_000)))
        before = used()
        job = client.submit("nobody", (f"item {{number}}" for number in range({count})))
        print(job.counts.items, used() - before)
        """
    )
    items, grown = map(int, measured.stdout.split())
    assert items == count
    assert grown < most, f"{grown:,} bytes"
