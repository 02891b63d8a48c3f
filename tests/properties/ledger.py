"""What must hold of the rows at every moment, whoever did what: read in one snapshot, compared with one another."""

from typing import Any

import psycopg

from storage.database import Database

TERMINAL = ("succeeded", "failed", "cancelled", "expired")

# Each query finds the rows that break the sentence.
_BROKEN = {
    "items that are counted are the items": """
        SELECT id FROM jobs WHERE items <> (SELECT count(*) FROM items WHERE job_id = jobs.id)""",
    "distinct inputs that are counted are those of the items": """
        SELECT id FROM jobs WHERE state <> 'receiving'
        AND distinct_inputs <> (SELECT count(DISTINCT input_id) FROM items WHERE job_id = jobs.id)""",
    "open shards that are counted are the shards": """
        SELECT id FROM jobs WHERE open_shards <>
            (SELECT count(*) FROM shards WHERE job_id = jobs.id AND state IN ('queued', 'leased'))""",
    "errors that are counted are the errors": """
        SELECT id FROM jobs WHERE failed <> (SELECT count(*) FROM item_errors WHERE job_id = jobs.id)""",
    "an input waits in exactly one open shard, or is counted": """
        SELECT id FROM jobs WHERE state IN ('queued', 'running', 'paused')
        AND distinct_inputs - cached - computed - failed <>
            (SELECT count(*) FROM (SELECT DISTINCT unnest(input_ids) FROM shards
                                   WHERE job_id = jobs.id AND state IN ('queued', 'leased')) AS waiting)""",
    "no input is in two shards": """
        SELECT job_id FROM (SELECT job_id, unnest(input_ids) AS input_id FROM shards WHERE state <> 'split') AS held
        GROUP BY job_id, input_id HAVING count(*) > 1""",
    "a job that succeeded waits for nothing": """
        SELECT id FROM jobs WHERE state = 'succeeded' AND distinct_inputs <> cached + computed + failed""",
    "a job that ended has nothing open": """
        SELECT id FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled', 'expired')
        AND (finished_at IS NULL OR EXISTS (SELECT FROM shards WHERE job_id = jobs.id
                                            AND state IN ('queued', 'leased')))""",
    "a job that goes on has something open": """
        SELECT id FROM jobs WHERE state IN ('queued', 'running', 'paused')
        AND (open_shards = 0 OR finished_at IS NOT NULL)""",
    "what is done has a result or an error, and an error is its own": """
        SELECT held.job_id, held.input_id
        FROM (SELECT shards.job_id, jobs.target_id, unnest(input_ids) AS input_id
              FROM shards JOIN jobs ON jobs.id = shards.job_id WHERE shards.state = 'done') AS held
        LEFT JOIN results USING (target_id, input_id)
        LEFT JOIN item_errors USING (job_id, input_id)
        WHERE results.input_id IS NULL AND item_errors.input_id IS NULL""",
    "a lease has a token and an end": """
        SELECT id FROM shards WHERE (state = 'leased') <> (token IS NOT NULL)
        OR (state = 'leased') <> (lease_expires_at IS NOT NULL)""",
    "what is split has parts, and only that": """
        SELECT id FROM shards AS parent WHERE (state = 'split') <>
            EXISTS (SELECT FROM shards WHERE parent_id = parent.id)""",
    "an end is told exactly once": """
        SELECT id FROM jobs WHERE endpoint_id IS NOT NULL
        AND (SELECT count(*) FROM deliveries WHERE job_id = jobs.id AND event <> 'job.progress') <>
            CASE WHEN state IN ('succeeded', 'failed', 'cancelled', 'expired') THEN 1 ELSE 0 END""",
    "what is told is what happened": """
        SELECT job_id FROM deliveries JOIN jobs ON jobs.id = job_id
        WHERE event <> 'job.progress'
        AND event <> 'job.' || CASE jobs.state WHEN 'succeeded' THEN 'completed' ELSE jobs.state END""",
}
_CHECK = " UNION ALL ".join(
    f"(SELECT '{sentence}' AS broken, count(*) AS rows FROM ({statement}) AS found)"
    for sentence, statement in _BROKEN.items()
)

# In the order that the design gives: an item's own error; else cancelled or expired, where its shard was; else the
# result.
_OUTCOMES = """
    SELECT items.job_id, items.position,
           coalesce(item_errors.code,
                    (SELECT 'unfinished' FROM shards WHERE shards.job_id = items.job_id AND state = 'cancelled'
                     AND items.input_id = ANY(input_ids)),
                    (SELECT 'result of ' || results.shard_id FROM results
                     WHERE results.input_id = items.input_id AND results.target_id = jobs.target_id),
                    'nothing') AS outcome
    FROM items JOIN jobs ON jobs.id = items.job_id LEFT JOIN item_errors USING (job_id, input_id)
    WHERE jobs.state IN ('succeeded', 'failed', 'cancelled', 'expired')
"""


_TABLES = ("jobs", "items", "item_errors", "shards", "results", "deliveries")
_EVERYTHING = " UNION ALL ".join(
    f"(SELECT '{table}', md5(coalesce(string_agg(md5(row::text), '' ORDER BY row::text), '')) FROM {table} AS row)"
    for table in _TABLES
)


class Ledger:
    """A connection of its own, for statements that are asked thousands of times."""

    def __init__(self, database: Database) -> None:
        address = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(address, autocommit=True, prepare_threshold=0)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement finds."""
        return self._connection.execute(statement).fetchall()

    def check(self) -> None:
        """Fail with the sentences that do not hold."""
        broken = [row[0] for row in self.rows(f"SELECT broken FROM ({_CHECK}) AS checked WHERE rows > 0")]
        assert not broken, broken

    def outcomes(self) -> dict[tuple[Any, int], str]:
        """What terminal jobs say of their items, by job and position."""
        found = {(row[0], row[1]): row[2] for row in self.rows(_OUTCOMES)}
        assert "nothing" not in found.values(), "an item of a job that ended has come to nothing"
        return found

    def everything(self) -> list[tuple[Any, ...]]:
        """A digest of every row: equal before and after what must change nothing."""
        return self.rows(_EVERYTHING)

    def empty(self) -> None:
        """No job, no input, no result; models and targets stay."""
        self._connection.execute("TRUNCATE jobs, items, item_errors, shards, results, inputs, deliveries CASCADE")

    def close(self) -> None:
        self._connection.close()
