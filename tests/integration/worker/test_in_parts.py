"""A worker that is given a model larger than its memory for models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.errors import JobFailed
from contracts.settings import Settings
from contracts.states import JobState
from producer import Client
from storage.broker import Tickets
from storage.database import Database
from tests.jobs import query
from worker.hardware import Hardware
from worker.process import WorkerProcess

LIMIT = 570_000
"""Bytes that the small language model does not fit into."""
TEXTS = ["The cat sat on the mat.", "A second text."]


@pytest.fixture
def client(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(database_url=database_url, broker_url=broker_url, home=tmp_path) as client:
        yield client


@pytest.fixture
def process(client: Client, database: Database, broker_url: str) -> Iterator[WorkerProcess]:
    with Tickets(broker_url) as tickets:
        process = WorkerProcess(client.settings, database, tickets, Hardware("cpu", "test", LIMIT))
        process.start()
        yield process
        process.drain()
        process.stop()


def test_lays_it_over_its_memory_and_the_disk_and_serves_it(
    process: WorkerProcess, client: Client, database: Database, language_model: Path
) -> None:
    spec = client.models.add("large", str(language_model), task="score", quantization="bf16")
    assert spec.memory_bytes > LIMIT
    client.models.add("small", "fake:?memory=500000")
    small = client.submit("small", TEXTS)
    assert process.serve("default")
    job = client.submit("large", TEXTS)
    assert process.serve("default")
    assert small.wait(5).state is job.wait(5).state is JobState.SUCCEEDED
    assert all(result.output["perplexity"] > 1 for result in job.results())
    # The other model left for it, and it holds less than the limit.
    assert process._cache.contents()[0] == [spec.id]
    assert 0 < process._cache.contents()[1] < LIMIT
    found = {row.device: row.memory_bytes for row in query(database, "SELECT device, memory_bytes FROM batch_budgets")}
    assert found["test, in parts"] < LIMIT < spec.memory_bytes


def test_refuses_it_where_it_is_quantized_by_bitsandbytes(
    process: WorkerProcess, client: Client, language_model: Path
) -> None:
    client.models.add("large", str(language_model), task="score", quantization="int8")
    job = client.submit("large", TEXTS)
    assert process.serve("default") is None
    with pytest.raises(JobFailed, match=r"model_too_large.*may take 570,000 here"):
        job.wait(5)


def test_settings_say_how_much(tmp_path: Path) -> None:
    from worker.hardware import detect

    found = detect(Settings(home=tmp_path, device="cpu", model_memory=LIMIT))
    assert (found.device, found.model_memory, found.others) == ("cpu", LIMIT, {})
