"""What compressions promise, seen from outside: real workers, real steps, a real model."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM
from contracts.errors import UnknownModel
from contracts.states import JobState
from producer import Client
from tests.acceptance.tiny import WIDTH
from tests.conftest import Mill, wait_until

SIZES = {"tiny": WIDTH, "minilm": 384}
"""How long the vectors of each model are."""
TWO_STEPS = [
    {"step": "prune", "method": "magnitude", "keep_ratio": 0.5},
    {"step": "quantize", "method": "int8"},
]
POOL = {"BATCHMILL_POOL": "compression", "BATCHMILL_LEASE_SECONDS": "3"}


def results(client: Client) -> list[Any]:
    with client._database.transaction() as connection:
        statement = """
            SELECT output->>'digest' AS digest, input_id, shard_id, xmin::text
            FROM results ORDER BY target_id, input_id
        """
        return list(connection.execute(text(statement)))


def step_of(worker: int) -> list[psutil.Process]:
    """The process of a step below a worker."""
    return [child for child in psutil.Process(worker).children() if "worker.compression" in child.cmdline()]


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
    make_database: Callable[..., str],
    make_broker: Callable[[], str],
    encoder: Path,
) -> Iterator[tuple[Mill, Client]]:
    """A worker that scores and one that compresses, with MiniLM and a tiny encoder."""
    mill = Mill(tmp_path_factory.mktemp("mill"), make_database(), make_broker())
    try:
        compressor = mill.worker(**POOL)
        mill.worker()
        with mill.client() as client:
            client.models.add("minilm", str(MINILM))
            client.models.add("tiny", str(encoder))
            yield mill, client
        assert "torch" not in loaded_libraries(compressor.pid)
    finally:
        mill.close()


PACKED = [{"step": "quantize", "method": "nf4"}]
GRAPH = [{"step": "export"}, {"step": "quantize", "method": "int8"}]


@pytest.mark.parametrize(
    ("name", "recipe", "model", "ratio"),
    [
        # Of a tiny model's graph most is names, so that its size says nothing.
        pytest.param("packed", PACKED, "tiny", 0.6, id="packed-tiny"),
        pytest.param("graph", GRAPH, "tiny", None, id="graph-tiny"),
        pytest.param("packed-minilm", PACKED, "minilm", 0.4, id="packed", marks=pytest.mark.verify),
        pytest.param("graph-minilm", GRAPH, "minilm", 0.3, id="graph", marks=pytest.mark.verify),
    ],
)
def test_what_a_recipe_makes_is_registered_and_scored_with(
    name: str,
    recipe: list[dict[str, Any]],
    model: str,
    ratio: float | None,
    both: tuple[Mill, Client],
    tmp_path: Path,
) -> None:
    _, client = both
    job = client.compress(model, recipe, name=name).wait(timeout=500)
    assert job.model == f"{name}@1"
    before, *_, after = job.report().stages
    assert ratio is None or after.size_bytes <= ratio * before.size_bytes
    assert job.save_report(tmp_path / "report.html").stat().st_size > 1000
    scored = client.submit(job.model, ["one text", "another"]).wait(timeout=200)
    assert [len(result.output) for result in scored.results()] == [SIZES[model]] * 2


@pytest.mark.parametrize("model", ["minilm"])
def test_a_result_that_misses_what_is_asked_is_kept_as_rejected(
    model: str, both: tuple[Mill, Client], tmp_path: Path
) -> None:
    _, client = both
    texts = stdlib_docstrings(36)
    recipe = [
        {"step": "prune", "method": "structured", "keep_ratio": 0.75},
        {"step": "distill", "data": texts[:24], "epochs": 1, "max_tokens": 16},
        {"step": "quantize", "method": "nf4"},
    ]
    missed = f"missed-{model}"
    job = client.compress(model, recipe, name=missed, evaluate=texts[24:], accept={"fidelity": 0.9999})
    job.wait(timeout=500)
    assert (job.state, job.compression.verdict, job.model) == (JobState.SUCCEEDED, "rejected", f"{missed}@1")
    report = job.report()
    assert [stage.title for stage in report.stages] == [
        f"{model}@1",
        "after step 1 (prune structured, keep 75%)",
        "after step 2 (distill)",
        "after step 3 (quantize nf4)",
    ]
    assert report.results[1].training is not None
    [criterion] = report.criteria
    assert (criterion.name, criterion.asked, criterion.met) == ("fidelity", 0.9999, False)
    assert 0 < criterion.found == report.stages[-1].fidelity["fidelity"] < 0.9999
    page = job.save_report(tmp_path / "report.html").read_text()
    assert "rejected" in page
    assert "<svg" in page or "data:image" in page
    with pytest.raises(UnknownModel, match=rf"'{missed}' was rejected.* name the version \({missed}@1\)"):
        client.submit(missed, ["one text"])
    scored = client.submit(f"{missed}@1", ["one text", "another"]).wait(timeout=200)
    assert [len(result.output) for result in scored.results()] == [SIZES[model]] * 2


def loaded_libraries(pid: int) -> str:
    return " ".join(path.path for path in psutil.Process(pid).memory_maps())


def test_a_worker_that_is_killed_at_the_second_step_costs_no_more_than_that_step(mill: Mill, encoder: Path) -> None:
    with mill.client() as client:
        client.models.add("tiny", str(encoder))
        job = client.compress("tiny", TWO_STEPS, name="small")
        victim = mill.worker(**POOL)
        mill.beat()
        wait_until(lambda: (progress := job.refresh().info.progress) is not None and progress.position == 2, 200)
        below = step_of(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        wait_until(lambda: not any(alive(process) for process in below), 60)
        first = results(client)
        assert len(first) == 1
        survivor = mill.worker(**POOL)
        job.wait(timeout=200)
        assert first[0] in results(client)
        assert mill.log(survivor).count("step 1 (") == 0
        # Another epoch is another target: nothing is in the cache.
        client.models.invalidate("tiny")
        client.compress("tiny", TWO_STEPS, name="again").wait(timeout=200)
        left = [row.digest for row in results(client) if row.digest is not None]
        assert left[:2] == left[2:]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_that_is_asked_to_leave_ends_its_step(mill: Mill, encoder: Path) -> None:
    with mill.client() as client:
        client.models.add("tiny", str(encoder))
        job = client.compress("tiny", TWO_STEPS[:1], name="small")
        worker = mill.worker(**POOL)
        wait_until(lambda: job.refresh().info.progress is not None and step_of(worker.pid), 60)
        below = step_of(worker.pid)
        worker.terminate()
        assert worker.wait(30) == 0, mill.log(worker)
        assert not any(alive(process) for process in below)
        assert job.refresh().state is JobState.RUNNING
        with client._database.transaction() as connection:
            assert connection.execute(text("SELECT state FROM shards")).scalar_one() == "queued"
        job.cancel()
