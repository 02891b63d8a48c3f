"""What workers say of themselves: while they live, and no longer."""

from datetime import timedelta

from storage import workers
from storage.database import Database
from storage.workers import WorkerReport
from tests.conftest import Mill, wait_until
from tests.jobs import execute

LATELY = timedelta(seconds=10)


def test_a_worker_is_on_the_list_while_it_lives(mill: Mill, database: Database) -> None:
    worker = mill.worker(BATCHMILL_SLOTS="3", BATCHMILL_MODEL_MEMORY="5000000")

    def found() -> list[workers.SeenWorker]:
        with database.transaction() as connection:
            return workers.seen(connection, LATELY)

    wait_until(lambda: len(found()) == 1)
    (idle,) = found()
    assert (idle.pool, idle.slots, idle.held, idle.models, idle.memory_limit) == ("default", 3, 0, [], 5_000_000)
    assert idle.name.endswith(f":{worker.pid}")
    with mill.client() as client:
        client.models.add("fake", "fake:?memory=1000")
        client.submit("fake", ["a", "b", "b"]).wait(30)
    wait_until(lambda: found()[0].models == ["fake@1"])
    wait_until(lambda: found()[0].inputs == 2)
    (busy,) = found()
    assert busy.model_bytes == 1000
    assert busy.tokens >= 2
    assert busy.seen_at > idle.seen_at
    mill.stop(worker)
    assert found() == []


def test_the_dead_are_forgotten_by_those_who_come_after(database: Database) -> None:
    said = WorkerReport("old:1", "default", "cpu", 4, 0, [], 0, 1, 0, 0)
    with database.transaction() as connection:
        workers.report(connection, said)
        workers.report(connection, said)
    execute(database, "UPDATE workers SET seen_at = now() - interval '2 hours'")
    with database.transaction() as connection:
        assert workers.seen(connection, LATELY) == []
        assert len(workers.seen(connection, timedelta(days=1))) == 1
        workers.forget(connection, "new:2")
        assert workers.seen(connection, timedelta(days=1)) == []
