"""Inputs and items: payloads stored once, lines that refer to them."""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from storage.bulk import bigints, copy_bytes, fetch_binary, read_bigints

IDS = "inputs_id_seq"
"""The sequence of inputs' ids."""

# LATERAL … LIMIT 1 is a lookup for each digest: left to itself the planner reads the whole table of inputs to hash it,
# which costs more the more is stored.
_KNOWN = """
    SELECT string_agg(int8send(coalesce(known.id, 0)), ''::bytea ORDER BY line.place)
    FROM (SELECT place, substring(%(digests)s::bytea, place * 32 + 1, 32) AS digest
          FROM generate_series(0, %(count)s - 1) AS place) AS line
    LEFT JOIN LATERAL (SELECT id FROM inputs WHERE inputs.digest = line.digest LIMIT 1) AS known ON true
"""
_NEW_IDS = f"SELECT string_agg(int8send(nextval('{IDS}')), ''::bytea) FROM generate_series(1, %(count)s)"
# COPY's binary rows: a count of fields, then each field's length and bytes; the last one's bytes follow.
_INPUT = Struct("> h iq i32s ii i")
_INPUT_COLUMNS = ["id", "digest", "size", "payload"]
_ITEM = Struct("> h i16s iq iq i")
_ITEM_COLUMNS = ["job_id", "position", "input_id", "custom_id"]
_NULL = -1


class Line(NamedTuple):
    """One line of a job on its way in."""

    position: int
    custom_id: str | None
    digest: bytes
    payload: bytes
    """Canonical JSON."""


def append(connection: Connection, job_id: UUID, lines: Sequence[Line]) -> None:
    """Add lines to a job that is being received; payloads never seen before are stored."""
    payloads = {line.digest: line.payload for line in lines}
    ids: dict[bytes, int] = {}
    while len(ids) < len(payloads):
        ids |= _known(connection, sorted(payloads.keys() - ids.keys()))
        try:
            with connection.begin_nested():
                ids |= _insert(connection, {digest: payloads[digest] for digest in payloads if digest not in ids})
        except UniqueViolation as error:
            if error.diag.constraint_name != "inputs_digest_key":
                raise
            # Another submission has stored some of them meanwhile.
    copy_bytes(connection, "items", _ITEM_COLUMNS, _item_rows(job_id, lines, ids))


def _known(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    """The ids of those payloads that are stored. Ascending, lookups find their neighbours in memory."""
    (found,) = fetch_binary(connection, _KNOWN, {"digests": b"".join(digests), "count": len(digests)})
    return {digest: known for digest, known in zip(digests, read_bigints(found).tolist(), strict=True) if known}


def _insert(connection: Connection, payloads: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """Store payloads; their ids ascend in the order in which they are given.

    Raises:
        UniqueViolation: One is stored already.
    """
    if not payloads:
        return {}
    (new,) = fetch_binary(connection, _NEW_IDS, {"count": len(payloads)})
    ids = dict(zip(payloads, read_bigints(new).tolist(), strict=True))
    rows: list[bytes] = []
    # Ascending, so that two submissions that meet take their locks in one order.
    for digest in sorted(ids):
        payload = payloads[digest]
        rows += (_INPUT.pack(4, 8, ids[digest], 32, digest, 4, len(payload), len(payload)), payload)
    copy_bytes(connection, "inputs", _INPUT_COLUMNS, b"".join(rows))
    return ids


def _item_rows(job_id: UUID, lines: Sequence[Line], ids: Mapping[bytes, int]) -> bytes:
    job = job_id.bytes
    rows: list[bytes] = []
    for line in lines:
        fixed = 4, 16, job, 8, line.position, 8, ids[line.digest]
        if line.custom_id is None:
            rows.append(_ITEM.pack(*fixed, _NULL))
        else:
            custom_id = line.custom_id.encode()
            rows += (_ITEM.pack(*fixed, len(custom_id)), custom_id)
    return b"".join(rows)


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
    # One array of JSON, decoded at once: a row for each would cost more than all the rest.
    ids, array = fetch_binary(
        connection,
        """
            SELECT string_agg(int8send(id), ''::bytea), '[' || string_agg(payload::text, ',') || ']'
            FROM inputs WHERE id = ANY(%(ids)s::bigint[])
        """,
        {"ids": bigints(input_ids)},
    )
    found = dict(zip(read_bigints(ids or b"").tolist(), orjson.loads(array or "[]"), strict=True))
    return [found[input_id] for input_id in input_ids]


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
