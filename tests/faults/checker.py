"""The seven invariants of the design, each checked from outside: rows and ledgers, no code of ours in between.

A check returns what violates its invariant; none is the answer that is hoped for.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.itemcodes import ItemCode
from storage.rescue import LIVES
from tests.faults import inputs
from tests.faults.crash import WORKER_POINTS
from tests.faults.evidence import Evidence
from tests.faults.repeats import repeats
from tests.faults.submitting import Plan

DEADLY = {"kill", "zombie", *WORKER_POINTS}
"""The faults that cost a worker the leases that the ledger says: it died, or stood still until they ran out."""
SHOWN = 5
"""Rows that a violation carries along."""
CHUNK = 5000


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold."""

    invariant: int
    what: str
    rows: tuple[Any, ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n    {row}" for row in self.rows[:SHOWN])
        more = f"\n    … {len(self.rows)} in all" if len(self.rows) > SHOWN else ""
        return f"invariant {self.invariant}: {self.what}{shown}{more}"


def check(evidence: Evidence) -> list[Violation]:
    """Every violation of every invariant."""
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]


def _rows(number: int, what: str, rows: list[Any]) -> Iterator[Violation]:
    if rows:
        yield Violation(number, what, tuple(rows))


def submissions(evidence: Evidence) -> Iterator[Violation]:
    """1. Every submission that returned exists, whole; one that did not return leaves nothing behind that counts."""
    found: dict[int, list[Any]] = {}
    for row in evidence.rows("SELECT id, state, items, metadata FROM jobs WHERE metadata ? 'number'"):
        found.setdefault(row.metadata["number"], []).append(row)
    acknowledged = evidence.acknowledged
    purged = {plan.number for plan in evidence.forgotten}
    lost = [n for n, job in acknowledged.items() if n not in purged and job not in [row.id for row in found.get(n, [])]]
    yield from _rows(1, "acknowledged, and no such job", lost)
    yield from _rows(1, "more than one job of a submission", [jobs for jobs in found.values() if len(jobs) > 1])
    yield from _rows(1, "nobody meant to submit it", [jobs for n, jobs in found.items() if n not in evidence.plans])
    for number, (job, *_) in found.items():
        # Of what did not return, either nothing counts or all of it: its client died between commit and answer.
        if number in evidence.plans and job.state != "receiving":
            yield from _rows(1, f"job {job.id} is not whole", _missing(evidence, evidence.plans[number], job))
    yield from _rows(1, "left in `receiving`", evidence.rows("SELECT id FROM jobs WHERE state = 'receiving'"))
    yield from _rows(
        1,
        "items of no job",
        evidence.rows("SELECT DISTINCT job_id FROM items WHERE NOT EXISTS (SELECT FROM jobs WHERE id = job_id)"),
    )


def _missing(evidence: Evidence, plan: Plan, job: Any) -> list[Any]:
    """Positions at which a job does not hold the line that was submitted."""
    wrong: list[Any] = [] if job.items == plan.count else [("items", job.items, "submitted", plan.count)]
    rows = evidence.rows(
        "SELECT position, custom_id, digest FROM items JOIN inputs ON inputs.id = input_id "
        "WHERE job_id = %s ORDER BY position",
        job.id,
    )
    if len(rows) != plan.count:
        wrong.append(("rows", len(rows), "submitted", plan.count))
    for place, row in enumerate(rows):
        number = plan.first + place
        expected = (place, plan.custom_id(number), inputs.digest(inputs.text(plan.seed, number)))
        if (row.position, row.custom_id, bytes(row.digest)) != expected:
            wrong.append((row.position, row.custom_id))
    return wrong


def endings(evidence: Evidence) -> Iterator[Violation]:
    """2. Each item ends in exactly one of: result, error, cancelled, expired, and stays so."""
    yield from _rows(
        2,
        "an input of a job that succeeded has neither a result nor an error",
        evidence.rows(f"""
            SELECT jobs.id, items.position FROM jobs JOIN items ON items.job_id = jobs.id
            WHERE jobs.state = 'succeeded' AND NOT {_HAS_RESULT} AND NOT {_HAS_ERROR} LIMIT 100
        """),
    )
    yield from _rows(
        2,
        "an input has both a result of its job's own and an error",
        evidence.rows("""
            SELECT item_errors.* FROM item_errors JOIN jobs ON jobs.id = item_errors.job_id
            JOIN results ON results.input_id = item_errors.input_id AND results.target_id = jobs.target_id
            JOIN shards ON shards.id = results.shard_id AND shards.job_id = jobs.id LIMIT 100
        """),
    )
    yield from _rows(
        2,
        "an input of a closed shard has neither a result nor an error",
        evidence.rows("""
            SELECT shards.job_id, shards.id, member.input_id
            FROM shards JOIN jobs ON jobs.id = shards.job_id, unnest(shards.input_ids) AS member(input_id)
            WHERE shards.state = 'done'
              AND NOT EXISTS (SELECT FROM results AS r
                              WHERE r.input_id = member.input_id AND r.target_id = jobs.target_id)
              AND NOT EXISTS (SELECT FROM item_errors AS e WHERE e.input_id = member.input_id AND e.job_id = jobs.id)
            LIMIT 100
        """),
    )
    yield from _rows(
        2,
        "a shard goes on although its job has ended",
        evidence.rows("""
            SELECT jobs.id, jobs.state, shards.id AS shard, shards.state AS shard_state
            FROM shards JOIN jobs ON jobs.id = job_id
            WHERE jobs.state IN ('succeeded', 'failed', 'cancelled', 'expired')
              AND (shards.state IN ('queued', 'leased') OR jobs.state = 'succeeded' AND shards.state = 'cancelled')
            LIMIT 100
        """),
    )
    otherwise = [
        row
        for row in evidence.rows("SELECT id, state, error_code, metadata ->> 'number' AS number FROM jobs")
        if (plan := evidence.plans.get(int(row.number))) and row.state in _ENDINGS - _asked(plan)
    ]
    yield from _rows(2, "a job ended in another way than its caller asked", otherwise)
    columns = ("state", "finished_at", "items", "distinct_inputs", "cached", "computed", "failed")
    final = {str(row.id): row for row in evidence.rows(f"SELECT id, {', '.join(columns)} FROM jobs")}
    changed = [
        (before["id"], {name: (before[name], str(getattr(final[before["id"]], name))) for name in columns})
        for before in evidence.observed
        if before["id"] in final
        and any(str(before[name]) != str(getattr(final[before["id"]], name)) for name in columns)
    ]
    yield from _rows(2, "a job that had ended was changed", changed)


_ENDINGS = {"succeeded", "failed", "cancelled", "expired"}


def _asked(plan: Plan) -> set[str]:
    """The states in which a job may end."""
    endings = {"succeeded"}
    if plan.cancelled:
        endings.add("cancelled")
    if plan.expires_in is not None:
        endings.add("expired")
    return endings


_HAS_RESULT = "EXISTS (SELECT FROM results AS r WHERE r.input_id = items.input_id AND r.target_id = jobs.target_id)"
_HAS_ERROR = "EXISTS (SELECT FROM item_errors AS e WHERE e.input_id = items.input_id AND e.job_id = jobs.id)"


def answers(evidence: Evidence) -> Iterator[Violation]:
    """3. At most one result per (target, input), equal to what the model gives."""
    yield from _rows(
        3,
        "more than one result of an input",
        evidence.rows("""
            SELECT target_id, input_id, count(*) FROM results GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 100
        """),
    )
    number_of = {
        inputs.digest(inputs.text(plan.seed, n)): n
        for plan in evidence.plans.values()
        for n in range(plan.first, plan.first + plan.count)
    }
    wrong: list[Any] = []
    last = 0
    while rows := evidence.rows(
        "SELECT input_id, digest, embedding::text AS vector FROM results JOIN inputs ON inputs.id = input_id "
        f"WHERE input_id > %s ORDER BY input_id FETCH FIRST {CHUNK} ROWS WITH TIES",
        last,
    ):
        last = rows[-1].input_id
        numbers = [number_of.get(bytes(row.digest)) for row in rows]
        wrong += [row for row, number in zip(rows, numbers, strict=True) if number is None]
        known = [(row, number) for row, number in zip(rows, numbers, strict=True) if number is not None]
        answer = inputs.oracle(evidence.seed, [number for _, number in known])
        vectors = np.array([row.vector[1:-1].split(",") for row, _ in known], np.float32).reshape(len(known), -1)
        right = (vectors == answer.vectors).all(axis=1) & np.array([code is None for code in answer.codes])
        wrong += [known[place] for place in np.flatnonzero(~right).tolist()]
    yield from _rows(3, "a result that the oracle does not give", wrong)
    errors = evidence.rows("SELECT job_id, input_id, code, digest FROM item_errors JOIN inputs ON inputs.id = input_id")
    unfounded = [
        row
        for row in errors
        if inputs.CODES.get(inputs.kind(evidence.seed, number_of.get(bytes(row.digest), 0))) != row.code
    ]
    struck = struck_alone(evidence)
    yield from _rows(
        3,
        "an error that the oracle does not give",
        [
            row
            for row in unfounded
            if row.code != ItemCode.WORKER_LOST or struck.get((row.job_id, row.input_id), 0) < LIVES
        ],
    )


def struck_alone(evidence: Evidence) -> dict[tuple[Any, int], int]:
    """How many processes that held just this input the suite killed or froze, of those that ended as `worker_lost`.

    Nobody can tell such an input from one that kills: as often as it takes to be held for one, it was computed alone
    and its lease ran out. In a storm of faults this happens now and then, and is told apart here by the fault ledger.
    """
    struck = {
        (shard, fault.get("process"))
        for fault in evidence.faults
        if fault["fault"] in DEADLY
        for shard in fault["held"]
    }
    killed = Counter(shard for shard, _ in struck)
    return {
        (row.job_id, row.input_id): killed[str(row.id)]
        for row in evidence.rows("""
            SELECT shards.id, shards.job_id, e.input_id FROM item_errors AS e
            JOIN shards ON shards.job_id = e.job_id AND e.input_id = ANY(shards.input_ids) AND shards.state = 'done'
            WHERE e.code = 'worker_lost'
        """)
    }


def counters(evidence: Evidence) -> Iterator[Violation]:
    """4. Counters equal what the rows say."""
    yield from _rows(
        4,
        "counters that the rows do not bear out",
        evidence.rows("""
            SELECT * FROM (
                SELECT jobs.id, jobs.state, jobs.items, jobs.distinct_inputs, jobs.failed, jobs.computed, jobs.cached,
                       jobs.open_shards, line.items AS has_items, line.distinct_inputs AS has_distinct,
                       line.computed AS has_computed, line.cached AS has_cached, error.failed AS has_failed,
                       shard.open AS has_open
                FROM jobs,
                LATERAL (
                    SELECT coalesce(sum(line.lines), 0) AS items, count(*) AS distinct_inputs,
                           count(*) FILTER (WHERE own.job_id = jobs.id) AS computed,
                           count(result.input_id) FILTER (WHERE own.job_id IS DISTINCT FROM jobs.id) AS cached
                    FROM (SELECT input_id, count(*) AS lines FROM items WHERE job_id = jobs.id GROUP BY 1) AS line
                    LEFT JOIN results AS result
                        ON result.input_id = line.input_id AND result.target_id = jobs.target_id
                        AND NOT EXISTS (SELECT FROM item_errors AS e
                                        WHERE e.job_id = jobs.id AND e.input_id = line.input_id)
                    LEFT JOIN shards AS own ON own.id = result.shard_id
                ) AS line,
                LATERAL (SELECT count(*) AS failed FROM item_errors WHERE job_id = jobs.id) AS error,
                LATERAL (SELECT count(*) AS open FROM shards
                         WHERE job_id = jobs.id AND state IN ('queued', 'leased')) AS shard
                WHERE jobs.state <> 'receiving'
            ) AS job
            WHERE items <> has_items OR distinct_inputs <> has_distinct OR failed <> has_failed
               OR open_shards <> has_open
               OR state = 'succeeded' AND (computed <> has_computed OR cached <> has_cached)
               OR computed > has_computed OR cached + computed + failed > distinct_inputs
            LIMIT 100
        """),
    )


def deliveries(evidence: Evidence) -> Iterator[Violation]:
    """5. Each event is delivered at least once under one id with a valid signature, or is `dead`, visibly."""
    yield from _rows(
        5,
        "a job with a callback has ended, and no event says so",
        evidence.rows("""
            SELECT id, state FROM jobs
            WHERE state IN ('succeeded', 'failed', 'cancelled', 'expired') AND endpoint_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM deliveries WHERE job_id = jobs.id AND event <> 'job.progress') LIMIT 100
        """),
    )
    yield from _rows(
        5,
        "an event is told twice",
        evidence.rows("""
            SELECT job_id, event, percent, count(*) FROM deliveries
            GROUP BY 1, 2, 3 HAVING count(*) > 1 LIMIT 100
        """),
    )
    found = evidence.rows("SELECT id, job_id, event, percent, state, attempt FROM deliveries")
    rows = {str(row.id): row for row in found}
    yield from _rows(5, "neither delivered nor dead", [row for row in rows.values() if row.state == "pending"])
    hasty = [row for row in rows.values() if row.state == "dead" and row.attempt < evidence.webhook_tries]
    yield from _rows(5, "dead before the schedule was through", hasty)
    taken = {record["id"] for record in evidence.webhooks if record["answer"] == "taken"}
    yield from _rows(
        5,
        "said to be delivered, and the receiver did not take it",
        [row for name, row in rows.items() if row.state == "delivered" and name not in taken],
    )
    yield from _rows(5, "a signature is not valid", [r for r in evidence.webhooks if not r["verified"]])
    yield from _rows(5, "an event of which no row tells", [r for r in evidence.webhooks if r["id"] not in rows])
    said: dict[str, Counter[str]] = {}
    for record in evidence.webhooks:
        said.setdefault(record["id"], Counter())[record["digest"]] += 1
    yield from _rows(5, "one id, and more than one body", [pair for pair in said.items() if len(pair[1]) > 1])


def ending_in_time(evidence: Evidence) -> Iterator[Violation]:
    """6. After the last fault everything becomes terminal within two leases, a tick, and the remaining work's time."""
    yield from _rows(
        6,
        f"not terminal {evidence.timing.allowed:.0f} s after the last fault",
        evidence.rows("""
            SELECT id, state, open_shards FROM jobs
            WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'expired') LIMIT 100
        """),
    )
    if evidence.timing.last_terminal is not None:
        took = evidence.timing.last_terminal - evidence.timing.last_fault
        if took > evidence.timing.allowed:
            yield Violation(
                6, f"the last job ended {took:.1f} s after the last fault, over {evidence.timing.allowed:.1f}"
            )


def repetitions(evidence: Evidence) -> Iterator[Violation]:
    """7. What is computed twice is at most the micro-batches in flight at each death."""
    found = repeats(evidence, np.frombuffer(b"".join(shared(evidence)), np.uint64))
    yield from _rows(7, "computed again although it was safe", found.unexplained)


def shared(evidence: Evidence) -> list[bytes]:
    """The digests, as engines see them, of inputs that more than one job holds, or held."""
    counts: Counter[int] = Counter()
    for plan in (*evidence.plans.values(), *evidence.forgotten):
        counts.update(range(plan.first, plan.first + plan.count))
    return [
        hashlib.blake2b(inputs.text(evidence.seed, number).encode(), digest_size=8).digest()
        for number, count in counts.items()
        if count > 1
    ]


INVARIANTS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    submissions,
    endings,
    answers,
    counters,
    deliveries,
    ending_in_time,
    repetitions,
)
