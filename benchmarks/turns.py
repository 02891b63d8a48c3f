"""Two models of one worker whose memory holds one: how often they take turns, and how long each waits."""

import time
from itertools import groupby, pairwise

from sqlalchemy import text

from benchmarks.harness import print_table, stack
from benchmarks.texts import sentences
from benchmarks.weights import MINILM
from producer import Client
from storage.database import Database

KINDS = ("none", "bf16")
LIMIT = 120_000_000
"""Bytes: either of the two fits, in float32 (91 MB) or bfloat16 (45 MB), and not both."""
TEXTS = 12_000


def main() -> None:
    texts = sentences(TEXTS)
    with stack(model_memory=LIMIT) as client:
        for kind in KINDS:
            client.models.add(kind, str(MINILM), quantization=kind)
            client.submit(kind, texts[:64]).wait(300)  # measures its budget
        begin = time.monotonic()
        jobs = [client.submit(kind, texts[64:], priority="bulk") for kind in KINDS]
        for job in jobs:
            job.wait(3600)
        seconds = time.monotonic() - begin
        order = _order(client, [str(job.id) for job in jobs])
    both = order[: 1 + max(place for place, (number, _) in enumerate(order) if number != order[-1][0])]
    turns = [list(shards) for _, shards in groupby(both, key=lambda shard: shard[0])]
    together = both[-1][1] - order[0][1]
    waits = [
        after - before
        for number in range(len(jobs))
        for before, after in pairwise([0.0, *(moment for which, moment in both if which == number)])
    ]
    switches = len(turns) - 1
    print_table(
        f"turns: {len(texts) - 64:,} sentences by each of two models, memory for one, {seconds:.0f} s in all",
        ["", "measured", "asked"],
        [
            ["seconds while both had work", f"{together:.0f}", ""],
            ["switches meanwhile", f"{switches}", ""],
            ["seconds of work a switch", f"{together / max(switches, 1):.1f}", "at least 10"],
            ["longest wait of a job between two of its shards, s", f"{max(waits):.1f}", "nobody starves"],
        ],
    )


def _order(client: Client, jobs: list[str]) -> list[tuple[int, float]]:
    """Which job each shard belongs to and when it was done, in seconds since the first submission, in that order."""
    with Database(str(client.settings.database_url)) as database, database.transaction() as connection:
        rows = connection.execute(
            text("""
                SELECT array_position(CAST(:jobs AS uuid[]), job_id) - 1,
                       extract(epoch FROM shards.finished_at - jobs.created_at)
                FROM shards JOIN jobs ON jobs.id = :first
                WHERE job_id = ANY(CAST(:jobs AS uuid[])) AND shards.state = 'done' ORDER BY shards.finished_at
            """),
            {"jobs": jobs, "first": jobs[0]},
        )
        return [(int(number), float(moment)) for number, moment in rows]


if __name__ == "__main__":
    main()
