"""What came of a compression: measured, held against what was asked, and told."""

from typing import Any, Literal

from pydantic import TypeAdapter

from contracts.compression import Report, StepResult
from contracts.recipes import Accept
from worker.compression.evaluation import EvaluationOrder, evaluate, judge, render
from worker.compression.order import Progress

_ORDER = TypeAdapter(EvaluationOrder)


def judged(order: dict[str, Any], about: dict[str, Any], progress: Progress) -> tuple[Report, str]:
    """The report, and the page that shows it.

    Args:
        order: An `EvaluationOrder`, as JSON.
        about: The job, its parent, the name of the result, what its steps left, and what is asked of it.
        progress: Told how far it is.
    """
    told = _ORDER.validate_python(order)
    found = evaluate(told, progress)
    criteria = judge(Accept.model_validate(about["accept"]), found.stages)
    verdict: Literal["accepted", "rejected", "not evaluated"] = "accepted"
    if not all(criterion.met for criterion in criteria):
        verdict = "rejected"
    elif told.data is None and not criteria:
        verdict = "not evaluated"
    report = Report(
        job=about["job"],
        parent=about["parent"],
        model=about["model"],
        task=told.task,
        recipe=told.recipe,
        verdict=verdict,
        rows=found.rows,
        stages=found.stages,
        results=[StepResult.model_validate(result) for result in about["results"]],
        sensitivity=found.sensitivity,
        criteria=criteria,
        notes=found.notes,
        machine=found.machine,
    )
    return report, render(report)
