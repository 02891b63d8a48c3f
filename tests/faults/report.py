"""What a long run says of itself: figures as JSON, and the same as a table."""

from typing import Any

import numpy as np

from tests.faults import checker, strikes
from tests.faults.evidence import Evidence
from tests.faults.inputs import KILLERS_FROM, Kind, kind
from tests.faults.repeats import repeats
from tests.faults.submitting import Plan
from tests.faults.world import World


def judged(evidence: Evidence) -> dict[str, Any]:
    """What the checker found, and what it looked at."""
    violations = checker.check(evidence)
    found = repeats(evidence, np.frombuffer(b"".join(checker.shared(evidence)), np.uint64))
    timing = evidence.timing
    took = None if timing.last_terminal is None else round(timing.last_terminal - timing.last_fault, 1)
    lost = {
        row.kills: row.n
        for row in evidence.rows(
            "SELECT starts_with(payload #>> '{}', %s) AS kills, count(*) AS n FROM item_errors "
            "JOIN inputs ON inputs.id = input_id WHERE code = 'worker_lost' GROUP BY 1",
            Kind.KILLS,
        )
    }
    return {
        "violations": [str(violation) for violation in violations],
        "computed": found.computed,
        "computed_once": found.distinct,
        "computed_again": found.duplicates,
        "in_flight_at_interruptions": found.in_flight,
        "seconds_from_last_fault_to_last_end": took,
        "seconds_allowed": round(timing.allowed, 1),
        "submissions_acknowledged": len(evidence.acknowledged),
        "webhook_requests": len(evidence.webhooks),
        "webhook_answers": _counts(record["answer"] for record in evidence.webhooks),
        "killer_inputs": sum(len(killers(plan)) for plan in evidence.plans.values()),
        "killer_inputs_found": lost.get(True, 0),
        "innocent_inputs_struck_three_times_alone": lost.get(False, 0),
    }


def killers(plan: Plan) -> list[int]:
    """The inputs of a plan that kill."""
    numbers = range(max(plan.first, KILLERS_FROM), plan.first + plan.count)
    return [number for number in numbers if kind(plan.seed, number) is Kind.KILLS]


def counted(world: World) -> dict[str, Any]:
    """What the rows and the fault ledger say, whether or not the run came to its end."""
    return {
        "faults": dict(sorted(strikes.struck(world).items())),
        "leases_released_at_once": world.tally.releases,
        "items": int(world.query("SELECT coalesce(sum(items), 0)::bigint AS n FROM jobs")[0].n),
        "jobs": {row.state: row.n for row in world.query("SELECT state, count(*) AS n FROM jobs GROUP BY 1")},
        "results": world.query("SELECT count(*) AS n FROM results")[0].n,
        "item_errors": {
            row.code: row.n for row in world.query("SELECT code, count(*) AS n FROM item_errors GROUP BY 1")
        },
        "deliveries": {
            row.state: row.n for row in world.query("SELECT state, count(*) AS n FROM deliveries GROUP BY 1")
        },
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = ["| | |", "|---|---|"]
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count:,}" for key, count in value.items())
        elif isinstance(value, list):
            value = "none" if not value else f"**{len(value)}**: " + "; ".join(value).replace("\n", " ")
        elif isinstance(value, int) and name != "seed":
            value = f"{value:,}"
        lines.append(f"| {name.replace('_', ' ')} | {value} |")
    return "\n".join(lines) + "\n"


def _counts(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
