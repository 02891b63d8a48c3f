"""`python -m worker.compression`: does one step, or judges a result, as standard input says, and ends."""

import json
import sys
from pathlib import Path
from typing import Any

from worker.compression.child import serve
from worker.compression.order import Progress
from worker.compression.wire import ORDER, OUTCOME, STEP


def work(request: dict[str, Any], progress: Progress) -> Any:
    """What is asked for, as JSON has it."""
    return _evaluate(request, progress) if request["do"] == "evaluate" else _step(request, progress)


def _step(request: dict[str, Any], progress: Progress) -> Any:
    from worker.compression.steps import run_of

    step, order = STEP.validate_python(request["step"]), ORDER.validate_python(request["order"])
    return OUTCOME.dump_python(run_of(step, order)(step, order, progress), mode="json")


def _evaluate(request: dict[str, Any], progress: Progress) -> Any:
    from worker.compression.judging import judged

    report, page = judged(request["order"], request["about"], progress)
    Path(request["page"]).write_text(page, encoding="utf-8")
    return json.loads(report.model_dump_json())


if __name__ == "__main__":
    sys.exit(serve(work))
