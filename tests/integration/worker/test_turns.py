"""Two models that do not fit into a worker's memory together."""

from itertools import groupby

from storage.database import Database
from tests.conftest import Mill, wait_until
from tests.jobs import query

FINISHED = """
    SELECT models.name FROM shards JOIN jobs ON jobs.id = shards.job_id
    JOIN targets ON targets.id = jobs.target_id JOIN models ON models.id = targets.model_id
    WHERE shards.state = 'done' ORDER BY shards.finished_at
"""


def test_take_turns_and_neither_starves(mill: Mill, database: Database) -> None:
    # One shard at a time, beside the slot that is kept for what is urgent.
    worker = mill.worker(BATCHMILL_MODEL_MEMORY="1000", BATCHMILL_SLOTS="2")
    mill.beat()
    with mill.client() as client:
        for name in ("first", "second"):
            # Passes of up to 32 inputs, which are measured fast.
            client.models.add(name, "fake:?memory=600&item_delay=0.004&oom=32")
        # A shard of a model that was measured nowhere takes a second; the first has work for longer than the ten
        # seconds after which another model may take its place.
        texts = [f"{number:5} {'word ' * 50}" for number in range(4_000)]
        first = client.submit("first", texts)
        wait_until(lambda: query(database, FINISHED))
        second = client.submit("second", texts[:500])
        for job in (second, first):
            job.wait(90)
        assert (first.counts.computed, second.counts.computed) == (4_000, 500)
    turns = [name for name, _ in groupby(row.name for row in query(database, FINISHED))]
    assert turns == ["first", "second", "first"]
    log = mill.log(worker)
    assert log.count("first@1 leaves memory for second@1") == 1
    assert log.count("second@1 leaves memory for first@1") == 1
