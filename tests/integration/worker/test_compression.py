"""The life of a compression in a worker, with steps that do what a test asks for."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psutil
import pytest

from contracts.compression import CompressionSpec, StepResult
from contracts.events import CreatedModel, JobData
from contracts.jobs import JobInfo
from contracts.models import ModelSpec
from contracts.names import COMPRESSION_POOL
from contracts.params import parse_params
from contracts.preflight import ModelSize, needs
from contracts.recipes import Dataset, Evaluation, parse_recipe
from contracts.settings import Settings
from contracts.states import JobState
from producer import verify_webhook
from producer.compression import submission
from producer.compression.submission import Terms
from storage import compressions, control, jobs, models, rescue, workers
from storage.artifacts import ArtifactStore, manifest_digest
from storage.broker import Tickets
from storage.database import Database
from storage.workers import WorkerReport
from tests import standin_step
from tests.jobs import claim, claimed, execute, expire, finish, make_model, outage, query, submit
from tests.receiver import Receiver, add_endpoint, delivering
from worker.compression.process import CompressionProcess

COMMAND = (sys.executable, str(Path(standin_step.__file__)))
FIRST, SECOND, OTHER = (
    {"step": "prune", "method": "magnitude", "keep_ratio": 0.5},
    {"step": "quantize", "method": "int8"},
    {"step": "quantize", "method": "nf4"},
)

Eventually = Callable[..., None]


class Shop:
    """A database with a model, and workers that compress it."""

    def __init__(self, folder: Path, database: Database, database_url: str, broker_url: str) -> None:
        self.folder = folder
        self.database = database
        self._urls = {"database_url": database_url, "broker_url": broker_url}
        self.store = ArtifactStore(str(folder / "artifacts"))

    def model(self, **behaviour: str) -> ModelSpec:
        """A parent; what happens at the first attempt at a step is told by its number, as `_1`."""
        source = self.folder / f"parent-{'-'.join(behaviour.values())}"
        source.mkdir()
        (source / standin_step.WEIGHTS).write_bytes(b"weights")
        (source / standin_step.BEHAVIOUR).write_text(json.dumps({k.strip("_"): v for k, v in behaviour.items()}))
        files = self.store.add(source)
        with self.database.transaction() as connection:
            return make_model(connection, "parent", files=files, digest=manifest_digest(files))

    def submit(self, parent: ModelSpec, *recipe: dict[str, Any], name: str = "small", **changes: Any) -> UUID:
        spec = CompressionSpec(name=name, recipe=parse_recipe(recipe), **changes)
        return submission.submit(self.database, parent, spec, Terms({}, None, None, None)).job_id

    @contextmanager
    def process(self, host: str = "host", **changes: Any) -> Iterator[CompressionProcess]:
        settings = Settings(
            **self._urls,
            home=self.folder / host,
            artifacts=str(self.folder / "artifacts"),
            pool=COMPRESSION_POOL,
            **changes,
        )
        with Tickets(self._urls["broker_url"]) as tickets:
            process = CompressionProcess(settings, self.database, tickets, command=COMMAND)
            process.start()
            try:
                yield process
            finally:
                process.drain()
                process.stop()

    def job(self, job_id: UUID) -> JobInfo:
        with self.database.transaction() as connection:
            return jobs.get(connection, job_id)

    def left(self, job_id: UUID) -> list[StepResult]:
        """What the steps of a job left, of this job or another."""
        rows = query(
            self.database,
            """SELECT output FROM items JOIN jobs ON jobs.id = job_id JOIN results USING (target_id, input_id)
               WHERE job_id = :id AND custom_id LIKE 'step%' ORDER BY position""",
            id=job_id,
        )
        return [StepResult.model_validate(row.output) for row in rows]

    def made(self, job_id: UUID) -> ModelSpec:
        with self.database.transaction() as connection:
            return models.get(connection, str(compressions.info(connection, job_id).model))

    def scratch(self, job_id: UUID, host: str = "host") -> Path:
        return self.folder / host / "cache" / "compression" / str(job_id)

    def shard(self, job_id: UUID) -> Any:
        [row] = query(self.database, "SELECT state, attempt, deaths, alone FROM shards WHERE job_id = :id", id=job_id)
        return row

    def holds(self, content: bytes) -> bool:
        """Whether the artifact store holds a file of that content."""
        return any(path.read_bytes() == content for path in (self.folder / "artifacts").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, make_database: Callable[..., str], make_broker: Callable[[], str]
) -> str:
    """The digest of what `FIRST` and `SECOND` make when nothing disturbs them."""
    url = make_database()
    with Database(url) as database:
        shop = Shop(tmp_path_factory.mktemp("plain"), database, url, make_broker())
        job_id = shop.submit(shop.model(), FIRST, SECOND)
        with shop.process() as process:
            assert process.serve(COMPRESSION_POOL)
        return shop.made(job_id).digest


@pytest.fixture
def shop(tmp_path: Path, database: Database, database_url: str, broker_url: str) -> Shop:
    return Shop(tmp_path, database, database_url, broker_url)


@contextmanager
def serving(process: CompressionProcess) -> Iterator[threading.Thread]:
    """A ticket is being served meanwhile."""
    thread = threading.Thread(target=process.serve, args=(COMPRESSION_POOL,))
    thread.start()
    try:
        yield thread
    except BaseException:
        process.drain()
        raise
    finally:
        thread.join(20)
        assert not thread.is_alive()


def steps() -> list[psutil.Process]:
    """The processes of steps that this one started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if COMMAND[1] in child.cmdline():
                found.append(child)
    return found


def asleep(shop: Shop, job_id: UUID, position: int = 1) -> Callable[[], bool]:
    """Whether the step sleeps."""

    def look() -> bool:
        progress = shop.job(job_id).progress
        return progress is not None and (progress.position, progress.message) == (position, "asleep")

    return look


def test_a_recipe_becomes_a_model(shop: Shop) -> None:
    parent = shop.model()
    job_id = shop.submit(parent, FIRST, SECOND)
    with shop.process() as process:
        served = process.serve(COMPRESSION_POOL)
        assert served is not None
        assert (served.job, served.items, served.model) == (job_id, 3, "parent@1")
        assert process.serve(COMPRESSION_POOL) is None
    job = shop.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert (job.counts.items, job.counts.computed, job.counts.waiting) == (3, 3, 0)
    first, second = shop.left(job_id)
    made = shop.made(job_id)
    assert (made.reference, made.parent, made.digest, made.files) == (
        "small@1",
        "parent@1",
        second.digest,
        second.files,
    )
    assert (made.engine, made.pool, made.source) == (parent.engine, parent.pool, f"batchmill://jobs/{job_id}")
    assert first.digest != second.digest
    assert first.size_bytes == sum(file.size for file in first.files)
    [finished] = query(shop.database, "SELECT output FROM results ORDER BY input_id DESC LIMIT 1")
    assert finished.output == {"model": "small@1", "verdict": "not evaluated"}
    assert not shop.scratch(job_id).exists()


def test_equal_beginnings_are_computed_once(shop: Shop) -> None:
    parent = shop.model()
    one, other = shop.submit(parent, FIRST, SECOND), shop.submit(parent, FIRST, OTHER, name="other")
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        assert process.serve(COMPRESSION_POOL)
    counts = [shop.job(job_id).counts for job_id in (one, other)]
    assert [(c.computed, c.cached) for c in counts] == [(3, 0), (2, 1)]
    assert shop.left(one)[0] == shop.left(other)[0]
    assert shop.made(other).reference == "other@1"


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        ("die", "compression_failed", "step 2 (quantize int8): its process was killed (SIGKILL)"),
        ("fill", "compression_failed", "step 2 (quantize int8): the disk is full"),
        ("refuse", "invalid_request", "step 2 (quantize int8): the model has no layers"),
    ],
)
def test_a_step_that_fails_fails_the_job_and_leaves_nothing_half(
    behaviour: str, code: str, message: str, shop: Shop
) -> None:
    job_id = shop.submit(shop.model(_2=behaviour), FIRST, SECOND)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    job = shop.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, code)
    assert job.error_message is not None
    assert job.error_message.startswith(message)
    assert len(shop.left(job_id)) == 1
    assert not shop.holds(b"half an artifact")
    assert query(shop.database, "SELECT name FROM models") == [("parent",)]
    assert not shop.scratch(job_id).exists()


def test_a_step_that_takes_too_long_fails_the_job(shop: Shop) -> None:
    job_id = shop.submit(shop.model(_1="sleep"), FIRST)
    with shop.process(compression_step_seconds=2.0) as process:
        assert process.serve(COMPRESSION_POOL)
    job = shop.job(job_id)
    assert job.error_message is not None
    assert "step 1 (prune magnitude, keep 50%): it was ended, as it took longer than 2 s" in job.error_message
    assert steps() == []


def test_a_recipe_that_does_not_fit_fails_before_work_starts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.compression.room.all_memory", lambda: 1000)
    job_id = shop.submit(shop.model(_1="sleep"), FIRST)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    job = shop.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "does_not_fit")


def test_a_shortage_of_memory_is_waited_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = shop.submit(shop.model(), FIRST)
    with shop.process() as process:
        with monkeypatch.context() as shortage:
            shortage.setattr("worker.compression.room.free_memory", lambda: 1000)
            assert process.serve(COMPRESSION_POOL)
            rests(shop, job_id, "waiting for memory: it needs about 0.5 GB, and 0.0 of")
            assert process.serve(COMPRESSION_POOL) is None
        rested(shop)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).state is JobState.SUCCEEDED


def test_a_shortage_of_memory_that_lasts_fails_the_job(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = shop.submit(shop.model(), FIRST)
    monkeypatch.setattr("worker.compression.room.free_memory", lambda: 1000)
    for _ in range(3):  # each by a process of its own, on one host
        assert shop.job(job_id).state in (JobState.QUEUED, JobState.RUNNING)
        rested(shop)
        with shop.process(compression_step_seconds=20.0) as process:
            assert process.serve(COMPRESSION_POOL)
    job = shop.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "does_not_fit")
    assert job.error_message is not None
    assert "needs about 0.5 GB, and 0.0 of" in job.error_message
    assert "the job has rested for it for 30 s" in job.error_message


def test_what_needs_more_disk_than_the_host_has_is_left_to_one_with_both(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.compression.room.shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    larger = WorkerReport("other:1", COMPRESSION_POOL, "cpu", 1, 0, [], 0, 2**40, 0, 0, disk_free=2**40)
    with shop.database.transaction() as connection:
        workers.report(connection, larger)
    job_id = shop.submit(shop.model(), FIRST)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        rests(shop, job_id, "it needs about 0.5 GB of memory and 0.0 GB of disk, which another host has")
        with shop.database.transaction() as connection:
            workers.report(connection, replace(larger, memory_limit=1000))
        rested(shop)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).error_code == "does_not_fit"


def test_what_needs_more_memory_than_the_host_has_is_left_to_a_larger_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.compression.room.all_memory", lambda: 1000)
    larger = WorkerReport("other:1", COMPRESSION_POOL, "cpu", 1, 0, [], 0, 2**40, 0, 0)
    with shop.database.transaction() as connection:
        workers.report(connection, larger)
    job_id = shop.submit(shop.model(), FIRST)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        rests(shop, job_id, "it needs about 0.5 GB of memory and 0.0 GB of disk, which another host has")
        with shop.database.transaction() as connection:
            workers.forget(connection, larger.name)
        rested(shop)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).error_code == "does_not_fit"


def rests(shop: Shop, job_id: UUID, message: str) -> None:
    """The job was let go for a while, and says why."""
    job, shard = shop.job(job_id), shop.shard(job_id)
    assert (job.state, shard.state, shard.deaths) == (JobState.RUNNING, "queued", 0)
    assert job.progress is not None
    assert job.progress.message.startswith(message)


def rested(shop: Shop) -> None:
    execute(shop.database, "UPDATE shards SET not_before = NULL")


def test_a_disk_that_is_too_small_for_a_later_step_fails_the_job_before_the_first(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = shop.model()
    size = ModelSize.of({}, memory_bytes=parent.memory_bytes, disk_bytes=sum(file.size for file in parent.files))
    first, second = needs(parse_recipe([FIRST, SECOND]), size, parent.task)
    free = first.disk_bytes + second.disk_bytes - 1
    monkeypatch.setattr("worker.compression.room.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    job_id = shop.submit(parent, FIRST, SECOND)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    job = shop.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "does_not_fit")
    assert job.error_message is not None
    assert job.error_message.startswith("step 1 (prune magnitude, keep 50%): it and what follows (quantize int8 is")
    assert shop.left(job_id) == []


def test_a_cancelled_job_ends_its_process_within_two_seconds(shop: Shop, eventually: Eventually) -> None:
    job_id = shop.submit(shop.model(_1="sleep"), FIRST)
    with shop.process() as process, serving(process):
        eventually(asleep(shop, job_id))
        assert len(steps()) == 1
        with shop.database.transaction() as connection:
            assert control.cancel(connection, job_id)
        eventually(lambda: not steps() and not shop.scratch(job_id).exists(), 2)
    assert shop.job(job_id).state is JobState.CANCELLED
    assert shop.left(job_id) == []


def test_a_paused_job_finishes_its_step_and_goes_on_later(shop: Shop, eventually: Eventually, plain: str) -> None:
    job_id = shop.submit(shop.model(), FIRST, SECOND)
    with shop.process() as process:
        with serving(process):
            eventually(lambda: shop.job(job_id).progress)
            with shop.database.transaction() as connection:
                assert control.pause(connection, job_id)
        job = shop.job(job_id)
        assert job.state is JobState.PAUSED
        assert len(shop.left(job_id)) == 1
        assert shop.shard(job_id).state == "queued"
        assert process.serve(COMPRESSION_POOL) is None
        with shop.database.transaction() as connection:
            assert control.resume(connection, job_id)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).state is JobState.SUCCEEDED
    assert shop.made(job_id).digest == plain


def test_a_worker_that_leaves_gives_its_lease_back_and_the_next_goes_on(
    shop: Shop, eventually: Eventually, plain: str
) -> None:
    job_id = shop.submit(shop.model(_2="sleep"), FIRST, SECOND)
    with shop.process() as process, serving(process) as slot:
        eventually(asleep(shop, job_id, 2))
        process.drain()
        slot.join(5)
        assert not slot.is_alive()
        assert steps() == []
    shard = shop.shard(job_id)
    assert (shard.state, shard.attempt, shard.alone) == ("queued", 0, False)
    assert (shop.scratch(job_id) / "2" / "scratch" / "tried").exists()
    stored = "SELECT input_id, shard_id, output::text FROM results ORDER BY input_id"
    before = query(shop.database, stored)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).state is JobState.SUCCEEDED
    assert shop.made(job_id).digest == plain
    assert set(before) < set(query(shop.database, stored))


def test_a_lease_that_is_lost_ends_the_process_and_another_host_goes_on(
    shop: Shop, eventually: Eventually, plain: str
) -> None:
    job_id = shop.submit(shop.model(_2="sleep"), FIRST, SECOND)
    with shop.process() as process, serving(process):
        eventually(asleep(shop, job_id, 2))
        execute(shop.database, "UPDATE shards SET lease_expires_at = now() - interval '1 second'")
        assert len(rescue.rescue(shop.database)) == 1
        eventually(lambda: not steps(), 2)
    assert shop.job(job_id).state is JobState.RUNNING
    execute(shop.database, "UPDATE shards SET not_before = NULL")
    with shop.process("host") as process:
        assert process.serve(COMPRESSION_POOL)
    assert shop.made(job_id).digest == plain


def stored_weights(shop: Shop, left: StepResult) -> Path:
    weights = next(file for file in left.files if file.path == standin_step.WEIGHTS)
    return shop.folder / "artifacts" / "sha256" / weights.sha256[:2] / weights.sha256


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))])
def test_an_artifact_that_is_lost_is_made_again(lost: Callable[[Path], object], shop: Shop, plain: str) -> None:
    parent = shop.model()
    one = shop.submit(parent, FIRST)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        [left] = shop.left(one)
        weights = stored_weights(shop, left)
        content = weights.read_bytes()
        lost(weights)
        other = shop.submit(parent, FIRST, SECOND)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(other).state is JobState.SUCCEEDED
    assert shop.made(other).digest == plain
    assert shop.left(other)[0] == left
    assert weights.read_bytes() == content


def test_an_artifact_that_is_lost_and_comes_out_otherwise_fails_the_job(shop: Shop) -> None:
    parent = shop.model(_1="vary")
    one = shop.submit(parent, FIRST)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        stored_weights(shop, shop.left(one)[0]).unlink()
        other = shop.submit(parent, FIRST, SECOND)
        assert process.serve(COMPRESSION_POOL)
    job = shop.job(other)
    assert (job.state, job.error_code) == (JobState.FAILED, "compression_failed")
    assert job.error_message is not None
    assert job.error_message.startswith("step 1 (prune magnitude, keep 50%): what it left is lost (model.safetensors")
    assert "run `batchmill models invalidate parent@1` and submit again" in job.error_message
    assert len(shop.left(other)) == 1


@pytest.mark.parametrize(
    ("step", "expected"),
    # 16 numbers of two bytes are computed in float32; a graph takes what its files do.
    [(FIRST, 16 * 4), ({"step": "export"}, len(b"a graph") + 32)],
)
def test_memory_is_what_the_result_takes_when_it_is_loaded(step: dict[str, Any], expected: int, shop: Shop) -> None:
    job_id = shop.submit(shop.model(), step)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    assert shop.made(job_id).memory_bytes == expected


def test_an_outage_of_postgres_costs_no_job(
    shop: Shop, eventually: Eventually, plain: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = shop.submit(shop.model(_1="doze"), FIRST, SECOND)
    with shop.process() as process, serving(process):
        eventually(asleep(shop, job_id))
        with outage(shop.database):
            eventually(lambda: "worker.compression.patience" in {record.name for record in caplog.records})
    shard = shop.shard(job_id)
    assert (shard.state, shard.attempt, shard.deaths) == ("done", 1, 0)
    assert shop.made(job_id).digest == plain


def test_the_same_step_is_done_by_one_job_at_a_time(shop: Shop, eventually: Eventually) -> None:
    parent = shop.model(_1="sleep")
    first = shop.submit(parent, FIRST, SECOND)
    second = shop.submit(parent, FIRST, OTHER, name="other")
    with shop.process() as process, serving(process):
        eventually(asleep(shop, first))
        with shop.process("other") as idle:
            assert idle.serve(COMPRESSION_POOL)
            rests(shop, second, f"waiting for job {first}, which is at the same step")
        process.drain()
    rested(shop)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        assert process.serve(COMPRESSION_POOL)
    assert {shop.job(job_id).state for job_id in (first, second)} == {JobState.SUCCEEDED}
    assert shop.left(first)[0] == shop.left(second)[0]


def test_while_one_waits_for_its_teacher_another_goes_on(shop: Shop, eventually: Eventually) -> None:
    parent = shop.model()
    (shop.folder / "rows.jsonl").write_text('{"input":"a text"}\n')
    [file] = shop.store.add(shop.folder, ["rows.jsonl"])
    with shop.database.transaction() as connection:
        target_id = models.make_target(connection, parent, parse_params(parent.task, {}))
    teacher = submit(shop.database, target_id, ["a text"])
    distill = {"step": "distill", "data": Dataset(file=file, rows=1)}
    one = shop.submit(parent, distill, teachers={file.sha256: teacher})
    with shop.process() as process:
        with serving(process):
            eventually(lambda: (told := shop.job(one).progress) and told.message == "waiting for the teacher: 0 %")
            other = shop.submit(parent, FIRST, name="other")
        rests(shop, one, "waiting for the teacher")
        assert process.serve(COMPRESSION_POOL)
        assert shop.job(other).state is JobState.SUCCEEDED
        finish(shop.database, claimed(shop.database))
        rested(shop)
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(one).state is JobState.SUCCEEDED


def test_a_store_that_is_away_for_a_while_costs_no_job(shop: Shop) -> None:
    job_id = shop.submit(shop.model(), FIRST)
    artifacts, away = shop.folder / "artifacts", shop.folder / "away"
    artifacts.rename(away)
    artifacts.write_text("no folder")
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
        assert shop.job(job_id).state is JobState.RUNNING
        assert shop.shard(job_id).state == "queued"
        assert process.serve(COMPRESSION_POOL) is None  # it rests
        artifacts.unlink()
        away.rename(artifacts)
        execute(shop.database, "UPDATE shards SET not_before = NULL")
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).state is JobState.SUCCEEDED


def test_a_host_where_a_lost_job_is_still_worked_on_leaves_it_alone(shop: Shop) -> None:
    job_id = shop.submit(shop.model(), FIRST)
    folder = shop.scratch(job_id)
    with shop.process() as process:
        folder.mkdir(parents=True)
        with locked(folder):
            assert process.serve(COMPRESSION_POOL)
        assert shop.shard(job_id).state == "queued"
        assert process.serve(COMPRESSION_POOL) is None  # it rests
    with shop.process("other") as process:
        execute(shop.database, "UPDATE shards SET not_before = NULL")
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).state is JobState.SUCCEEDED


def locked(folder: Path) -> AbstractContextManager[object]:
    from worker.compression.scratch import scratch

    return scratch(folder.parent, UUID(folder.name))


def test_what_dead_jobs_left_on_the_host_is_removed_at_the_start(shop: Shop) -> None:
    alive, dead = (shop.submit(shop.model(_1=name), FIRST) for name in ("nothing", "refuse"))
    for job_id in (alive, dead):
        (shop.scratch(job_id) / "1").mkdir(parents=True)
    with shop.database.transaction() as connection:
        control.cancel(connection, dead)
    with shop.process():
        assert os.listdir(shop.scratch(alive).parent) == [str(alive)]


def test_workers_that_die_at_a_step_fail_the_job_which_is_not_split(shop: Shop) -> None:
    job_id = shop.submit(shop.model(), FIRST, SECOND)
    for death in range(1 + rescue.LIVES):
        assert shop.job(job_id).state is not JobState.FAILED
        execute(shop.database, "UPDATE shards SET not_before = NULL")
        lease = claimed(shop.database, pool=COMPRESSION_POOL)
        execute(shop.database, "UPDATE shards SET loading = false")
        expire(shop.database, lease)
        rescue.rescue(shop.database)
        assert shop.shard(job_id).deaths == death
    job = shop.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "worker_lost")
    assert job.error_message == "each of the last 3 workers died, or was cut off, at step 1 of the recipe"


def test_a_step_that_was_done_forgets_the_deaths_before_it(shop: Shop, eventually: Eventually) -> None:
    job_id = shop.submit(shop.model(_2="sleep"), FIRST, SECOND)
    execute(shop.database, "UPDATE shards SET alone = true, deaths = 2")
    with shop.process() as process, serving(process):
        eventually(asleep(shop, job_id, 2))
        assert shop.shard(job_id).deaths == 0
        process.drain()


def test_the_end_is_announced_with_the_model(shop: Shop, eventually: Eventually) -> None:
    receiver = Receiver()
    try:
        _, secret = add_endpoint(shop.database, receiver.url())
        spec = CompressionSpec(name="small", recipe=parse_recipe([FIRST]))
        parent, terms = shop.model(), Terms({"night": 7}, None, None, receiver.url())
        job_id = submission.submit(shop.database, parent, spec, terms).job_id
        with shop.process() as process, delivering(shop.database):
            assert process.serve(COMPRESSION_POOL)
            eventually(lambda: len(receiver.requests) == 2)
    finally:
        receiver.close()
    events = {
        event.type: event.data for event in (verify_webhook(r.body, r.headers, secret) for r in receiver.requests)
    }
    assert set(events) == {"model.created", "job.completed"}
    told = events["model.created"]
    assert isinstance(told, JobData)
    assert (told.id, told.metadata) == (job_id, {"night": 7})
    assert told.created == CreatedModel(model="small@1", digest=shop.made(job_id).digest, verdict="not evaluated")


def test_each_pool_has_workers_of_its_own(shop: Shop) -> None:
    with shop.process() as process:
        assert not process.starves()
        shop.submit(shop.model(), FIRST)
        assert claim(shop.database) is None
        assert process.starves()
        assert process.serve(COMPRESSION_POOL)
        assert not process.starves()


def test_while_it_works_it_takes_nothing_more(shop: Shop, eventually: Eventually) -> None:
    parent = shop.model(_1="sleep")
    first = shop.submit(parent, FIRST)
    shop.submit(parent, OTHER, name="other")
    with shop.process() as process, serving(process):
        eventually(asleep(shop, first))
        assert not process.idle
        assert not process.starves()
        assert process.serve(COMPRESSION_POOL) is None
        process.give_back()
        assert shop.shard(first).state == "queued"
        process.drain()


def test_an_export_is_handed_the_rows_of_the_evaluation(shop: Shop) -> None:
    (shop.folder / "rows.jsonl").write_text('{"input":"a text"}\n')
    [file] = shop.store.add(shop.folder, ["rows.jsonl"])
    evaluation = Evaluation(data=Dataset(file=file, rows=1))
    job_id = shop.submit(shop.model(), FIRST, {"step": "export"}, evaluate=evaluation)
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    said = [result.notes for result in shop.left(job_id)]
    assert said == [["it was a stand-in"], ["it was a stand-in", '{"input":"a text"}']]


def test_a_registered_student_needs_the_room_that_it_needs(shop: Shop) -> None:
    parent = shop.model()
    with shop.database.transaction() as connection:
        make_model(connection, "huge", files=parent.files, digest=parent.digest, memory_bytes=2**50)
    [file] = shop.store.add(shop.folder / "parent-", [standin_step.BEHAVIOUR])
    job_id = shop.submit(parent, {"step": "distill", "data": Dataset(file=file, rows=1), "student": "huge@1"})
    with shop.process() as process:
        assert process.serve(COMPRESSION_POOL)
    assert shop.job(job_id).error_code == "does_not_fit"
