"""Two jobs beside each other: which rows differ, and samples of what came of them.

Of a job that is newer than its statistics the planner expects a single row, and would join two such jobs by a nested
loop, which for millions of rows never ends. So what joins them is a FULL JOIN, which is never one, or is told not to;
what looks rows up one by one is a LATERAL … LIMIT 1, for the reason given in `storage.inputs`.
"""

from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from contracts.names import Task
from storage.bulk import fetch_binary

SAMPLED_ROWS = 100_000
"""At most so many rows of a job are looked at, evenly by their positions."""

# Collation "C": ids are compared as bytes, as nobody asks for their order.
_CHANGES = text("""
    SELECT by_id.new + by_input.new AS new, by_id.changed, by_id.removed + by_input.removed AS removed
    FROM (
        SELECT count(*) FILTER (WHERE before.input_id IS NULL) AS new,
               count(*) FILTER (WHERE now.input_id <> before.input_id) AS changed,
               count(*) FILTER (WHERE now.input_id IS NULL) AS removed
        FROM (SELECT custom_id COLLATE "C" AS id, input_id FROM items
              WHERE job_id = :job_id AND custom_id IS NOT NULL) AS now
        FULL JOIN (SELECT custom_id COLLATE "C" AS id, input_id FROM items
                   WHERE job_id = :before_job_id AND custom_id IS NOT NULL) AS before USING (id)
    ) AS by_id CROSS JOIN (
        SELECT coalesce(sum(now.rows) FILTER (WHERE before.rows IS NULL), 0)::bigint AS new,
               coalesce(sum(before.rows) FILTER (WHERE now.rows IS NULL), 0)::bigint AS removed
        FROM (SELECT input_id, count(*) AS rows FROM items
              WHERE job_id = :job_id AND custom_id IS NULL GROUP BY input_id) AS now
        FULL JOIN (SELECT input_id, count(*) AS rows FROM items
                   WHERE job_id = :before_job_id AND custom_id IS NULL GROUP BY input_id) AS before USING (input_id)
    ) AS by_input
""")
_FAILED_ROWS = text("""
    SELECT count(error.input_id) FROM items
    LEFT JOIN LATERAL (SELECT input_id FROM item_errors
                       WHERE item_errors.job_id = :job_id AND item_errors.input_id = items.input_id LIMIT 1
    ) AS error ON true
    WHERE items.job_id = :job_id
""")


def hold(connection: Connection, job_id: UUID) -> bool:
    """Keep a purge from removing the job until the transaction ends; whether the job is there."""
    statement = text("SELECT FROM jobs WHERE id = :id FOR KEY SHARE")
    return connection.execute(statement, {"id": job_id}).first() is not None


def count_changes(connection: Connection, job_id: UUID, before_job_id: UUID) -> tuple[int, int, int]:
    """Rows of a job that are new, changed, and removed since another.

    A row with an id is new where the other job has none of that id, and changed where it has another input there; a row
    without one is new where no row without an id has its input there.
    """
    row = connection.execute(_CHANGES, {"job_id": job_id, "before_job_id": before_job_id}).one()
    return row.new, row.changed, row.removed


def count_failed_rows(connection: Connection, job_id: UUID) -> int:
    """Rows of a job with an error in place of an output."""
    return int(connection.execute(_FAILED_ROWS, {"job_id": job_id}).scalar_one())


@dataclass(frozen=True)
class JobKey:
    """A job, as far as its rows' results are found by it."""

    job_id: UUID
    target_id: int
    items: int

    @property
    def stride(self) -> int:
        """Every which row is sampled."""
        return -(-self.items // SAMPLED_ROWS) or 1


@dataclass(frozen=True)
class Numbers:
    """What the sampled rows of a job gave; n entries each."""

    values: NDArray[np.float64]
    labels: list[str | None]
    """What each value is the score of, where the task has labels."""
    single: bool
    """Whether no row has more than one label or document."""


_BEST = "CASE jsonb_typeof(output #> '{0,score}') WHEN 'number' THEN (output #>> '{0,score}')::float8 END"
_VALUE = {
    Task.CLASSIFY: _BEST,
    Task.RERANK: _BEST,
    Task.SCORE: """
        CASE WHEN jsonb_typeof(output -> 'log_likelihood') = 'number' AND jsonb_typeof(output -> 'tokens') = 'number'
        THEN (output ->> 'log_likelihood')::float8 / nullif((output ->> 'tokens')::float8, 0) END
    """,
}
"""By task: the one number of an output."""
NUMERIC = frozenset(_VALUE)


def sample_numbers(connection: Connection, task: Task, job: JobKey) -> Numbers:
    """Of a sample of a job's rows: the score of the best label or document, or the log-likelihood a token.

    Rows without such a number, as those that failed, are left out.
    """
    values, labels, single = fetch_binary(
        connection,
        f"""
        SELECT array_agg(value), array_agg(label), bool_and(single)
        FROM (
            SELECT {_VALUE[task]} AS value, output #>> '{{0,label}}' AS label, output -> 1 IS NULL AS single
            FROM generate_series(0::bigint, %(last)s, %(stride)s) AS wanted (position)
            CROSS JOIN LATERAL (
                SELECT input_id FROM items WHERE job_id = %(job_id)s AND items.position = wanted.position LIMIT 1
            ) AS item
            LEFT JOIN LATERAL (
                SELECT input_id FROM item_errors
                WHERE item_errors.job_id = %(job_id)s AND item_errors.input_id = item.input_id LIMIT 1
            ) AS error ON true
            CROSS JOIN LATERAL (
                SELECT output FROM results
                WHERE results.input_id = item.input_id AND results.target_id = %(target_id)s
                  AND error.input_id IS NULL LIMIT 1
            ) AS result
        ) AS found WHERE value IS NOT NULL
        """,
        {"job_id": job.job_id, "target_id": job.target_id, "last": job.items - 1, "stride": job.stride},
    )
    return Numbers(np.array(values or (), np.float64), labels or [], bool(single))


@dataclass(frozen=True)
class Distances:
    """Between what sampled rows gave before and give now."""

    changed: NDArray[np.float64]
    """Cosine distances, `[n]`, of rows with another input or another target."""
    unchanged: int
    """Rows with the same input and target: their distance is 0, as their result is the same."""


_FLOATS = "CASE WHEN vector_dims({0}) = vector_dims({1}) THEN {0} <=> {1} END"
# Bits are signs: of vectors of ±1 the cosine is 1 - 2 × the share of bits that differ.
_BITS = "CASE WHEN length({0}) = length({1}) THEN 2 * ({0} <~> {1}) / length({0}) END"


def sample_distances(connection: Connection, job: JobKey, column: str, before: JobKey, before_column: str) -> Distances:
    """Of a sample of a job's rows: how far the embedding is from the one that the same row had in another job.

    The same row is that of the same id, or, without one, of the same input. Rows that failed in either are left out,
    and so are all where the vectors cannot be compared: of another width, or packed bits beside floats.

    Args:
        connection: In a transaction of the caller's own: the planner is told not to loop over two jobs.
        job: The job.
        column: Of `results`: where its vectors are.
        before: The other job.
        before_column: Where that one's are.
    """
    bits = [name == "embedding_bits" for name in (column, before_column)]
    cast = "" if any(bits) else "::vector"
    distance = "NULL::float8"
    if all(bits) or not any(bits):
        distance = (_BITS if all(bits) else _FLOATS).format(f"one.{column}{cast}", f"other.{before_column}{cast}")
    connection.execute(text("SET LOCAL enable_nestloop = off"))
    distances, unchanged = fetch_binary(
        connection,
        f"""
        WITH line AS MATERIALIZED (
            SELECT item.custom_id COLLATE "C" AS id, item.input_id
            FROM generate_series(0::bigint, %(last)s, %(stride)s) AS wanted (position)
            CROSS JOIN LATERAL (
                SELECT custom_id, input_id FROM items
                WHERE job_id = %(job_id)s AND items.position = wanted.position LIMIT 1
            ) AS item
        ), pair AS MATERIALIZED (
            SELECT line.input_id, earlier.input_id AS before_id
            FROM line JOIN (SELECT custom_id COLLATE "C" AS id, input_id FROM items
                            WHERE job_id = %(before_job_id)s AND custom_id IS NOT NULL) AS earlier USING (id)
            UNION ALL
            SELECT line.input_id, line.input_id FROM line
            WHERE line.id IS NULL AND line.input_id IN
                (SELECT input_id FROM items WHERE job_id = %(before_job_id)s AND custom_id IS NULL)
        ), good AS MATERIALIZED (
            SELECT input_id, before_id, input_id = before_id AND %(target_id)s = %(before_target_id)s AS same FROM pair
            WHERE NOT EXISTS (SELECT FROM item_errors AS error
                              WHERE error.job_id = %(job_id)s AND error.input_id = pair.input_id)
              AND NOT EXISTS (SELECT FROM item_errors AS error
                              WHERE error.job_id = %(before_job_id)s AND error.input_id = pair.before_id)
        )
        SELECT (SELECT array_agg({distance})
                FROM good
                CROSS JOIN LATERAL (SELECT {column} FROM results
                                    WHERE results.input_id = good.input_id AND target_id = %(target_id)s LIMIT 1) AS one
                CROSS JOIN LATERAL (SELECT {before_column} FROM results
                                    WHERE results.input_id = good.before_id AND target_id = %(before_target_id)s
                                    LIMIT 1) AS other
                WHERE NOT good.same),
               (SELECT count(*) FROM good WHERE same)
        """,
        {
            "job_id": job.job_id,
            "target_id": job.target_id,
            "before_job_id": before.job_id,
            "before_target_id": before.target_id,
            "last": job.items - 1,
            "stride": job.stride,
        },
    )
    found = np.array([np.nan if value is None else value for value in distances or ()], np.float64)
    return Distances(found[np.isfinite(found)], unchanged)
