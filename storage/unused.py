"""Results and inputs that no job refers to: looked for in one pass, then removed in short batches.

Items have no index by input, which would cost each submission more than a purge is worth. So the pass reads all of
them, as they are after a moment T, and whatever is added later is asked of the jobs that received something since:
positions of a job are consecutive, and grow. A batch looks once more while submissions are kept out, and has but the
last chunks to read.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT
from sqlalchemy.dialects.postgresql import UUID as UUID_TYPE

from contracts.errors import DatabaseBusy
from storage import locks, oldjobs
from storage.bulk import fetch_binary, read_bigints
from storage.database import Database

Ids = NDArray[np.int64]
T = TypeVar("T")

PASS = 4_000_000
"""What one pass finds at most: 64 MB."""
BATCH = 2_000
PATIENCE = timedelta(seconds=1)
"""How long a batch waits for the chunks under way, and new ones for it."""
TRIES = 30
TRY_SECONDS = 1.0

_LOCK = 7_216_315_109  # any constant that nothing else locks: one pass at a time reads everything

# Whatever the statistics say, no table is read once for each row of another. The pass may take its time.
_PLAN = text("""
    SELECT set_config('enable_nestloop', 'off', true), set_config('work_mem', '64MB', true),
           set_config('transaction_timeout', '0', true)
""")

_REFERRED = "SELECT FROM items JOIN jobs ON jobs.id = items.job_id AND {remaining} WHERE items.input_id ="
_OLD_RESULT = "uuid_extract_timestamp(results.shard_id) < now() - %(age)s::interval"
# What nobody refers to is found by the primary key alone; the wide rows are visited for that.
_RESULTS = f"""
    SELECT {{columns}} FROM (
        SELECT unused.input_id, unused.target_id
        FROM (SELECT input_id, target_id FROM results
              WHERE NOT EXISTS ({_REFERRED} results.input_id AND jobs.target_id = results.target_id)
              OFFSET 0) AS unused
        CROSS JOIN LATERAL (
            SELECT FROM results
            WHERE results.input_id = unused.input_id AND results.target_id = unused.target_id AND {_OLD_RESULT}
            LIMIT 1) AS old
        LIMIT %(most)s) AS found
"""
_INPUTS = f"""
    SELECT {{columns}} FROM (
        SELECT inputs.id AS input_id FROM inputs
        WHERE inputs.created_at < now() - %(age)s::interval AND NOT EXISTS ({_REFERRED} inputs.id)
          AND NOT EXISTS (SELECT FROM results WHERE results.input_id = inputs.id {{staying}})
        LIMIT %(most)s) AS found
"""
_PAIRS = "string_agg(int8send(input_id), ''::bytea), string_agg(int8send(target_id), ''::bytea)"
_SINGLES = "string_agg(int8send(input_id), ''::bytea)"
_ANY_OLD = text("SELECT created_at < now() - CAST(:age AS interval) FROM inputs ORDER BY id LIMIT 1")

_ARRIVALS = text("""
    SELECT jobs.id, jobs.items, news.input_ids FROM jobs
    LEFT JOIN unnest(:jobs, :lines) AS seen(id, lines) ON seen.id = jobs.id
    CROSS JOIN LATERAL (
        SELECT string_agg(int8send(items.input_id), ''::bytea) AS input_ids FROM items
        WHERE items.job_id = jobs.id AND items.position >= coalesce(seen.lines, 0)) AS news
    WHERE jobs.received_at >= :since AND jobs.items > coalesce(seen.lines, 0)
""").bindparams(bindparam("jobs", type_=ARRAY(UUID_TYPE)), bindparam("lines", type_=ARRAY(BIGINT)))

# LATERAL … LIMIT 1 is a lookup for each, for the reason given in `storage.inputs`.
_DELETE_RESULTS = text("""
    DELETE FROM results WHERE ctid = ANY (ARRAY(
        SELECT found.place FROM unnest(:inputs, :targets) AS gone(input_id, target_id)
        CROSS JOIN LATERAL (
            SELECT ctid AS place FROM results
            WHERE results.input_id = gone.input_id AND results.target_id = gone.target_id LIMIT 1) AS found))
""").bindparams(bindparam("inputs", type_=ARRAY(BIGINT)), bindparam("targets", type_=ARRAY(BIGINT)))
_DELETE_INPUTS = text("""
    DELETE FROM inputs WHERE id = ANY (ARRAY(
        SELECT gone.input_id FROM unnest(:inputs) AS gone(input_id)
        LEFT JOIN LATERAL (
            SELECT true AS there FROM results WHERE results.input_id = gone.input_id LIMIT 1) AS result ON true
        WHERE result.there IS NULL))
""").bindparams(bindparam("inputs", type_=ARRAY(BIGINT)))


class Arrivals:
    """Inputs of items that were added since a moment; each look tells of those that the one before did not."""

    def __init__(self, since: datetime) -> None:
        self.since = since
        """Every item added before it was seen."""
        self._lines: dict[UUID, int] = {}

    @classmethod
    def begin(cls, connection: Connection) -> "Arrivals":
        """From now on; what jobs that are being received hold already, the pass sees."""
        arrivals = cls(_now(connection))
        rows = connection.execute(text("SELECT id, items AS lines FROM jobs WHERE state = 'receiving'"))
        arrivals._lines = {row.id: row.lines for row in rows}
        return arrivals

    def look(self, connection: Connection) -> Ids:
        """Those since the last look."""
        known = {"jobs": list(self._lines), "lines": list(self._lines.values())}
        rows = connection.execute(_ARRIVALS, {"since": self.since, **known}).all()
        self._lines.update({job_id: lines for job_id, lines, _ in rows})
        return np.concatenate([read_bigints(b"")] + [read_bigints(raw or b"") for _, _, raw in rows])


class Candidates:
    """What no job referred to when it was listed; by input, ascending."""

    def __init__(self, inputs: Ids, targets: Ids | None = None) -> None:
        order = np.argsort(inputs, kind="stable")
        self._inputs = inputs[order]
        self._targets = None if targets is None else targets[order]
        self._unused = np.ones(len(inputs), np.bool_)

    def __len__(self) -> int:
        return len(self._inputs)

    def spare(self, used: Ids) -> None:
        """Keep whatever belongs to these inputs."""
        begins, ends = (np.searchsorted(self._inputs, used, side) for side in ("left", "right"))
        for found in np.flatnonzero(begins < ends):
            self._unused[begins[found] : ends[found]] = False

    def batch(self, start: int) -> dict[str, list[int]]:
        """Those from one place on that may still go, as parameters of a statement."""
        places = start + np.flatnonzero(self._unused[start : start + BATCH])
        batch = {"inputs": self._inputs[places].tolist()}
        return batch if self._targets is None else {**batch, "targets": self._targets[places].tolist()}


def count(connection: Connection, jobs_age: timedelta | None, age: timedelta | None) -> tuple[int, int]:
    """How many results and inputs would go, once the jobs older than `jobs_age` are gone.

    Raises:
        DatabaseBusy: A purge is under way.
    """
    _plan(connection)
    how = {"columns": "count(*)", "remaining": f"NOT ({oldjobs.EXPIRED.format(age='%(jobs_age)s::interval')})"}
    values = {"jobs_age": jobs_age, "age": age, "most": None}
    (results,) = fetch_binary(connection, _RESULTS.format(**how), values)
    staying = f"AND ({_OLD_RESULT}) IS NOT TRUE"
    (inputs,) = fetch_binary(connection, _INPUTS.format(**how, staying=staying), values)
    return results, inputs


def delete_results(database: Database, age: timedelta) -> int:
    """Remove results older than that to which no job refers; how many.

    Raises:
        DatabaseBusy: Another purge is under way, or submissions leave no gap.
    """
    return _delete(database, age, _RESULTS.format(columns=_PAIRS, remaining="true"), _DELETE_RESULTS)


def delete_inputs(database: Database, age: timedelta) -> int:
    """Remove inputs older than that to which no job refers and that have no result; how many.

    Raises:
        DatabaseBusy: Another purge is under way, or submissions leave no gap.
    """
    return _delete(database, age, _INPUTS.format(columns=_SINGLES, remaining="true", staying=""), _DELETE_INPUTS)


def _delete(database: Database, age: timedelta, query: str, statement: TextClause) -> int:
    deleted = 0
    while True:
        with database.transaction() as connection:
            if not connection.execute(_ANY_OLD, {"age": age}).scalar():
                return deleted  # inputs are numbered as they come: none is older than the first
        arrivals = _alone(database, Arrivals.begin)
        with database.transaction() as connection:
            _plan(connection)
            found = fetch_binary(connection, query, {"age": age, "most": PASS})
            candidates = Candidates(*(read_bigints(raw or b"") for raw in found))
        for start in range(0, len(candidates), BATCH):
            deleted += _delete_batch(database, candidates, start, arrivals, statement)
        if len(candidates) < PASS:
            return deleted


def _delete_batch(
    database: Database, candidates: Candidates, start: int, arrivals: Arrivals, statement: TextClause
) -> int:
    with database.transaction() as connection:  # most of what arrived is seen while submissions go on
        candidates.spare(arrivals.look(connection))

    def delete(connection: Connection) -> tuple[int, datetime]:
        moment = _now(connection)
        candidates.spare(arrivals.look(connection))
        values: Mapping[str, Any] = candidates.batch(start)
        return connection.execute(statement, values).rowcount, moment

    began = time.monotonic()
    deleted, arrivals.since = _alone(database, delete)
    time.sleep(time.monotonic() - began)  # submissions get half of the time at least
    return deleted


def _alone(database: Database, work: Callable[[Connection], T]) -> T:
    """Do something in a transaction that keeps submissions out."""
    for _ in range(TRIES):
        with database.transaction() as connection:
            if locks.exclude_submissions(connection, PATIENCE):
                return work(connection)
        time.sleep(TRY_SECONDS)
    raise DatabaseBusy(
        f"submissions left a purge no gap in {TRIES} tries: a client may hang in the middle of one; what is removed "
        "stays so, and the next purge goes on"
    )


def _plan(connection: Connection) -> None:
    if not connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar_one():
        raise DatabaseBusy("another purge is looking for what is not used: let it finish")
    connection.execute(_PLAN)


def _now(connection: Connection) -> datetime:
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now
