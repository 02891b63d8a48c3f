"""What was computed twice, from the engine ledgers alone, and whether an interruption explains it.

An interruption is the death of a process, its giving leases back before it ends, or a fault that costs it its leases
while it lives on: it stood still, or Postgres was out of its reach for longer than a lease. In flight at that moment is
what it had begun and not yet committed: that much may be computed again, and no more.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.evidence import Evidence
from tests.faults.ledger import Act, Computed
from worker.persister import FLUSH_SECONDS


@dataclass(frozen=True)
class Repeats:
    """Counts of rows: inputs that went through the model."""

    computed: int
    distinct: int
    in_flight: int
    """Begun and not committed when the process died or may have lost its leases."""
    unexplained: list[dict[str, Any]]
    """Repeats of what was safe."""

    @property
    def duplicates(self) -> int:
        """Passages through the model beyond the first."""
        return self.computed - self.distinct


def repeats(evidence: Evidence, shared: NDArray[np.uint64]) -> Repeats:
    """Look at every passage of every input through a model.

    Args:
        evidence: Of the run.
        shared: Digests of inputs that several jobs hold: two of them may compute one at the same moment.
    """
    ledger = evidence.computed
    process, digest, begun, settled = _passages(ledger)
    lost = _lost(evidence, process, _looked(ledger, process, digest, begun), begun, settled)
    # What a dead process never committed was in flight when it died, however it died.
    died = np.array([ordinal for ordinal, role, *_ in evidence.deaths if role == "worker"], np.int64)
    in_flight = lost | (np.isinf(settled) & np.isin(process, died))
    order = np.lexsort((begun, digest))
    again = digest[order][1:] == digest[order][:-1]
    first, second = order[:-1][again], order[1:][again]
    # Either the first of two passages was interrupted, or the second was begun by a process that had lost the lease
    # and did not know yet.
    wrong = first[~in_flight[first] & ~lost[second] & ~np.isin(digest[first], shared)]
    return Repeats(
        computed=len(digest),
        distinct=len(np.unique(digest)),
        in_flight=int(in_flight.sum()),
        unexplained=[
            {
                "digest": f"{int(digest[row]):016x}",
                "process": int(process[row]),
                "begun": float(begun[row]),
                "settled": float(settled[row]),
            }
            for row in wrong.tolist()
        ],
    )


def _passages(
    ledger: Computed,
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64]]:
    """Process, digest, time of begin and time of commit (infinity for never) of each passage."""
    begins = np.flatnonzero(ledger.act == Act.BEGUN)
    settles = np.flatnonzero(ledger.act == Act.SETTLED)
    process, digest, begun = ledger.process[begins], ledger.digest[begins], ledger.at[begins]
    settled = np.full(len(begins), np.inf)
    # The n-th commit of an input by a process belongs to its first passage that is not committed yet.
    waiting: dict[tuple[int, int], list[int]] = {}
    places = np.concatenate([begins, settles])
    at = ledger.at[places]
    kind = np.concatenate([np.zeros(len(begins)), np.ones(len(settles))])
    for place in np.lexsort((kind, at)).tolist():
        row = int(places[place])
        key = (int(ledger.process[row]), int(ledger.digest[row]))
        if place < len(begins):
            waiting.setdefault(key, []).append(place)
        elif pending := waiting.get(key):
            settled[pending.pop(0)] = ledger.at[row]
    return process, digest, begun, settled


def _looked(
    ledger: Computed, process: NDArray[np.int64], digest: NDArray[np.uint64], begun: NDArray[np.float64]
) -> NDArray[np.float64]:
    """When the process of each passage had last looked whether the input had a result: right after it got the lease."""
    looks: dict[tuple[int, int], list[float]] = {}
    for row in np.flatnonzero(ledger.act == Act.LOOKED).tolist():
        looks.setdefault((int(ledger.process[row]), int(ledger.digest[row])), []).append(float(ledger.at[row]))
    return np.array(
        [
            max((at for at in looks.get((one, of), ()) if at <= when), default=np.inf)
            for one, of, when in zip(process.tolist(), digest.tolist(), begun.tolist(), strict=True)
        ]
    )


def _lost(
    evidence: Evidence,
    process: NDArray[np.int64],
    looked: NDArray[np.float64],
    begun: NDArray[np.float64],
    settled: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which passages were under way when a living process lost its leases, gave them back, or had yet to notice."""
    found = np.zeros(len(process), np.bool_)
    # A heartbeat notices that a lease is gone within a third of it, and the micro-batch at hand is finished.
    notice = evidence.lease / 3 + FLUSH_SECONDS
    lost = [(r.get("process"), r.get("began", r["at"]), r["until"]) for r in evidence.faults if "until" in r]
    left = [(r["process"], r["at"], np.inf) for r in evidence.leaving]
    for ordinal, start, stop in [*lost, *left]:
        # What was prepared under the lost lease may go on first, where the machine has little time for the process.
        caught = ((begun <= stop + notice) | (looked <= stop)) & (settled >= start)
        found |= caught if ordinal is None else caught & (process == ordinal)
    return found
