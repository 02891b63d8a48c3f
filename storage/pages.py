"""Results on their way out: consecutive items of a job with what is known of each."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from contracts.errors import JobNotFound
from storage.bulk import fetch_binary


@dataclass(frozen=True)
class Page:
    """Consecutive items of a job, column by column; n entries each."""

    positions: NDArray[np.int64]
    custom_ids: list[str | None]
    outputs: NDArray[Any] | list[str | None]
    """Vectors (rows of zeros where there is none), or JSON texts."""
    present: NDArray[np.bool_]
    """Whether the item has an output."""
    errors: list[tuple[str, str] | None]
    """Code and message."""
    cached: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


# What a column's values are sent as. Those of a page are joined in the database: a page is then a handful of
# values, and not a message for each item.
_SEND = {
    "embedding": "vector_send",
    "embedding_half": "halfvec_send",
    "embedding_bits": "varbit_send",
}
_VECTOR = {"embedding": ">f4", "embedding_half": ">f2"}


def _page_query(column: str) -> str:
    """Items of a range of positions, which have no gaps, as one row of arrays.

    LATERAL … LIMIT 1 is a lookup for each item, for the reason given in `storage.inputs`.
    """
    joined = "array_agg(output::text)" if column == "output" else f"string_agg({_SEND[column]}({column}), ''::bytea)"
    return f"""
        SELECT count(*), array_agg(input_id), array_agg(custom_id), {joined}, array_agg({column} IS NOT NULL),
               array_agg(position) FILTER (WHERE code IS NOT NULL), array_agg(code) FILTER (WHERE code IS NOT NULL),
               array_agg(message) FILTER (WHERE code IS NOT NULL), array_agg(cached), array_agg(truncated),
               EXISTS (SELECT FROM jobs WHERE jobs.id = %(job_id)s)
        FROM (
            SELECT items.position, items.input_id, items.custom_id, result.{column}, error.code, error.message,
                   result.input_id IS NOT NULL AND items.job_id IS DISTINCT FROM
                       (SELECT shards.job_id FROM shards WHERE shards.id = result.shard_id) AS cached,
                   coalesce(result.truncated, false) AS truncated
            FROM items
            LEFT JOIN LATERAL (
                SELECT input_id, code, message FROM item_errors
                WHERE item_errors.job_id = items.job_id AND item_errors.input_id = items.input_id LIMIT 1
            ) AS error ON true
            LEFT JOIN LATERAL (
                SELECT input_id, shard_id, truncated, {column} FROM results
                WHERE results.input_id = items.input_id AND results.target_id = %(target_id)s
                  AND error.input_id IS NULL LIMIT 1
            ) AS result ON true
            WHERE items.job_id = %(job_id)s AND items.position >= %(start)s AND items.position < %(stop)s
            ORDER BY items.position
        ) AS item
    """


def read(
    connection: Connection,
    *,
    job_id: UUID,
    target_id: int,
    column: str,
    start: int,
    stop: int,
    withheld: NDArray[np.int64] | None = None,
) -> Page:
    """The items of a job at positions `start` to `stop - 1`, with what is known of them.

    Where the job has an error, a result that another job got is not looked at.

    Args:
        connection: In a transaction.
        job_id: A job that is terminal.
        target_id: What it computed.
        column: Of `results`: where the outputs are.
        start: The first position.
        stop: The position after the last.
        withheld: Inputs whose results are not the job's, as the function `withheld` gives them.

    Raises:
        JobNotFound: A purge removed the job.
    """
    count, input_ids, custom_ids, raw, present, failed, codes, messages, cached, truncated, there = fetch_binary(
        connection,
        _page_query(column),
        {"job_id": job_id, "target_id": target_id, "start": start, "stop": stop},
    )
    if not there:  # what is left of its items does not count
        raise JobNotFound(f"job {job_id} was removed while it was being read")
    errors: list[tuple[str, str] | None] = [None] * count
    for position, code, message in zip(failed or (), codes or (), messages or (), strict=True):
        errors[position - start] = (code, message)
    has_output = np.array(present or (), np.bool_)
    outputs: NDArray[Any] | list[str | None]
    outputs = (raw or []) if column == "output" else _decode_vectors(raw or b"", has_output, column)
    page = Page(
        positions=np.arange(start, start + count),
        custom_ids=custom_ids or [],
        outputs=outputs,
        present=has_output,
        errors=errors,
        cached=np.array(cached or (), np.bool_),
        truncated=np.array(truncated or (), np.bool_),
    )
    if withheld is not None and count:
        _withhold(page, _among(np.array(input_ids, np.int64), withheld))
    return page


def withheld(connection: Connection, job_id: UUID) -> NDArray[np.int64]:
    """The inputs of a job's cancelled shards, ascending: what a job that ended early says nothing of.

    Such an input may have a result, from a shard that was cut short or of another job, and may get one at any time;
    what a terminal job says of its items does not change.
    """
    # An array's binary form: 20 bytes of header, then each element with its length before it.
    rows = connection.execute(
        text("SELECT array_send(input_ids) FROM shards WHERE job_id = :job_id AND state = 'cancelled'"),
        {"job_id": job_id},
        execution_options={"stream_results": True, "yield_per": 100},
    )
    element = np.dtype([("length", ">i4"), ("value", ">i8")])
    parts = [np.frombuffer(raw, element, offset=20)["value"].astype(np.int64) for raw in rows.scalars()]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _among(values: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the values are among the others."""
    if len(ascending) == 0:
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.asarray(ascending[places] == values)


def _withhold(page: Page, which: NDArray[np.bool_]) -> None:
    """Take the results of entries out of a page."""
    if isinstance(page.outputs, list):
        for index in np.flatnonzero(which).tolist():
            page.outputs[index] = None
    else:
        page.outputs[which] = 0
    for flags in (page.present, page.cached, page.truncated):
        flags[which] = False


def _decode_vectors(raw: bytes, present: NDArray[np.bool_], column: str) -> NDArray[Any]:
    """Values of `vector`, `halfvec` or `bit varying` in their binary form as a matrix; zeros where there is none.

    Each begins with four bytes that say how long it is; all of a target are equally long.
    """
    rows = max(int(present.sum()), 1)
    body = np.frombuffer(raw, np.uint8).reshape(rows, len(raw) // rows)[:, 4:]
    if column in _VECTOR:
        stored = np.dtype(_VECTOR[column])
        values: NDArray[Any] = np.ascontiguousarray(body).view(stored).astype(stored.newbyteorder("="))
    else:
        values = body.copy()
    if present.all() and len(present):
        return values
    matrix = np.zeros((len(present), values.shape[1]), values.dtype)
    matrix[present] = values[: int(present.sum())]
    return matrix


def dimensions(connection: Connection, *, job_id: UUID, target_id: int, column: str) -> int | None:
    """How wide the vectors of a job are (in bytes for packed bits); None when it has none."""
    if column == "output":
        return None
    measure = {
        "embedding": "vector_dims(embedding)",
        "embedding_half": "vector_dims(embedding_half)",
        "embedding_bits": "(length(embedding_bits) + 7) / 8",
    }[column]
    statement = text(f"""
        SELECT {measure} FROM items JOIN results USING (input_id)
        WHERE items.job_id = :job_id AND results.target_id = :target_id LIMIT 1
    """)
    return connection.execute(statement, {"job_id": job_id, "target_id": target_id}).scalar_one_or_none()


def starts_with_chat(connection: Connection, job_id: UUID) -> bool:
    """Whether the input of a job's first item is an object with messages, as a chat is."""
    statement = text("""
        SELECT payload::jsonb ? 'messages' FROM items JOIN inputs ON inputs.id = items.input_id
        WHERE items.job_id = :job_id ORDER BY items.position LIMIT 1
    """)
    return bool(connection.execute(statement, {"job_id": job_id}).scalar_one_or_none())
