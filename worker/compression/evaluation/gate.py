"""Whether a result reached what was asked of it."""

from collections.abc import Sequence

from contracts.compression import Criterion, Stage
from contracts.errors import InvalidRequest
from contracts.recipes import Accept


def judge(accept: Accept, stages: Sequence[Stage]) -> list[Criterion]:
    """What was asked, each with what was found: of the last stage, to the first.

    Raises:
        InvalidRequest: Fidelity or speed is asked for, and nothing was measured: there were no rows to evaluate on.
    """
    parent, result = stages[0], stages[-1]
    criteria = []
    if accept.fidelity is not None:
        found = result.fidelity.get("fidelity")
        if found is None:
            raise _unknown("fidelity")
        criteria.append(Criterion(name="fidelity", asked=accept.fidelity, found=found, met=found >= accept.fidelity))
    if accept.size_ratio is not None:
        found = result.size_bytes / parent.size_bytes
        criteria.append(
            Criterion(name="size_ratio", asked=accept.size_ratio, found=found, met=found <= accept.size_ratio)
        )
    if accept.speedup is not None:
        if parent.measurement is None or result.measurement is None:
            raise _unknown("speedup")
        found = result.measurement.throughput / parent.measurement.throughput
        criteria.append(Criterion(name="speedup", asked=accept.speedup, found=found, met=found >= accept.speedup))
    return criteria


def _unknown(what: str) -> InvalidRequest:
    return InvalidRequest(f"accept asks for {what}, and there is nothing to tell it by: give rows with evaluate=")
