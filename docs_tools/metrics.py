"""The reference of metrics, from `worker.metrics.METRICS`."""

from docs_tools.tables import table
from worker.metrics import METRICS, Program


def render() -> str:
    """A table for each program that exports metrics."""
    return "\n".join(f"## {program.capitalize()}\n\n{_table(program)}" for program in Program)


def _table(program: Program) -> str:
    rows = [
        (f"`{metric.name}`", metric.help, metric.kind, ", ".join(f"`{label}`" for label in metric.labels))
        for metric in METRICS
        if metric.program is program
    ]
    return table(("metric", "meaning", "kind", "labels"), rows)
