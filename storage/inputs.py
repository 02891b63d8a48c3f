"""Inputs and items: payloads stored once, lines that refer to them."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from storage.bulk import copy_rows

# The temporary table outlives the transaction empty, so that a connection makes it once.
_STAGING = text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS batchmill_lines (
        position bigint, custom_id text, digest bytea, payload json, size integer
    ) ON COMMIT DELETE ROWS
""")
_COLUMNS = {"position": "int8", "custom_id": "text", "digest": "bytea", "payload": "bytea", "size": "int4"}

# One statement looks up what is known, stores what is new and refers to both. Sorted by digest, so that lookups find
# their neighbours in memory and two submissions that meet take their locks in one order. LATERAL … LIMIT 1 is a lookup
# for each line: left to itself the planner reads the whole table of inputs to hash it, which costs more the more is
# stored.
_INSERT = text("""
    WITH line AS MATERIALIZED (
        SELECT sorted.*, known.id
        FROM (SELECT * FROM batchmill_lines ORDER BY digest) AS sorted
        LEFT JOIN LATERAL (SELECT id FROM inputs WHERE inputs.digest = sorted.digest LIMIT 1) AS known ON true
    ), new AS (
        INSERT INTO inputs (digest, payload, size)
        SELECT digest, payload, size FROM line WHERE id IS NULL AND payload IS NOT NULL
        ON CONFLICT (digest) DO NOTHING
        RETURNING id, digest
    )
    INSERT INTO items (job_id, position, input_id, custom_id)
    SELECT :job_id, line.position, coalesce(line.id, new.id), line.custom_id
    FROM line LEFT JOIN new USING (digest)
    WHERE coalesce(line.id, new.id) IS NOT NULL
    ORDER BY line.position
""")
# Inputs that another submission committed while that statement ran were neither new to it nor known.
_INSERT_REST = text("""
    INSERT INTO items (job_id, position, input_id, custom_id)
    SELECT :job_id, line.position, known.id, line.custom_id
    FROM batchmill_lines AS line
    CROSS JOIN LATERAL (SELECT id FROM inputs WHERE inputs.digest = line.digest LIMIT 1) AS known
    WHERE NOT EXISTS (SELECT FROM items WHERE items.job_id = :job_id AND items.position = line.position)
""")


class Line(NamedTuple):
    """One line of a job on its way in."""

    position: int
    custom_id: str | None
    digest: bytes
    payload: bytes
    """Canonical JSON."""


def append(connection: Connection, job_id: UUID, lines: Sequence[Line]) -> None:
    """Add lines to a job that is being received; payloads never seen before are stored."""
    seen: set[bytes] = set()

    def rows() -> list[tuple[Any, ...]]:
        staged = []
        for line in lines:
            first = line.digest not in seen
            seen.add(line.digest)
            payload = line.payload if first else None
            staged.append((line.position, line.custom_id, line.digest, payload, len(line.payload)))
        return staged

    connection.execute(_STAGING)
    copy_rows(connection, "batchmill_lines", _COLUMNS, rows())
    if connection.execute(_INSERT, {"job_id": job_id}).rowcount < len(lines):
        connection.execute(_INSERT_REST, {"job_id": job_id})


def duplicate_custom_id(connection: Connection, job_id: UUID) -> tuple[str, int, int] | None:
    """A custom id that two lines of the job share, with the positions of both; None when there is none."""
    row = connection.execute(
        text("""
            SELECT custom_id, min(position), max(position) FROM items
            WHERE job_id = :job_id AND custom_id IS NOT NULL
            GROUP BY custom_id HAVING count(*) > 1 LIMIT 1
        """),
        {"job_id": job_id},
    ).first()
    return None if row is None else (row[0], row[1], row[2])


def payloads(connection: Connection, input_ids: Sequence[int]) -> list[Any]:
    """The payloads of inputs, decoded, in the order of the ids.

    Raises:
        KeyError: An input does not exist.
    """
    rows = connection.execute(
        text("SELECT id, payload::text FROM inputs WHERE id = ANY(:ids)"), {"ids": list(input_ids)}
    )
    found = {row[0]: row[1] for row in rows}
    return [orjson.loads(found[input_id]) for input_id in input_ids]


def ids_of_job(connection: Connection, job_id: UUID) -> list[int]:
    """The inputs of a job's items, in their order."""
    rows = connection.execute(
        text("SELECT input_id FROM items WHERE job_id = :job_id ORDER BY position"), {"job_id": job_id}
    )
    return list(rows.scalars())


def cached(connection: Connection, target_id: int, digests: Sequence[bytes]) -> set[bytes]:
    """Those of the payloads with these digests that have a result for the target."""
    statement = text("""
        SELECT inputs.digest FROM inputs JOIN results ON results.input_id = inputs.id
        WHERE results.target_id = :target_id AND inputs.digest = ANY(:digests)
    """).bindparams(bindparam("digests", type_=ARRAY(BYTEA)))
    rows = connection.execute(statement, {"target_id": target_id, "digests": list(digests)})
    return {bytes(digest) for digest in rows.scalars()}


def of_job(connection: Connection, job_id: UUID, start: int, stop: int) -> list[Any]:
    """The payloads of a job's items at positions `start` to `stop - 1`, in their order."""
    rows = connection.execute(
        text("""
            SELECT payload::text FROM items JOIN inputs ON inputs.id = items.input_id
            WHERE job_id = :job_id AND position >= :start AND position < :stop ORDER BY position
        """),
        {"job_id": job_id, "start": start, "stop": stop},
    )
    return [orjson.loads(payload) for payload in rows.scalars()]
