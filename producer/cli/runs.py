"""Runs in rows, for a person."""

from typing import TYPE_CHECKING

from rich.text import Text

from contracts.states import RunState
from contracts.urls import shown
from producer.summary import local_time, seconds_text

if TYPE_CHECKING:
    from contracts.runs import Changes, RunInfo

RUNS = ("DUE", "STATE", "ROWS", "NEW", "CHANGED", "REMOVED", "CACHED", "FAILED", "TIME", "WHY")
DROP = ("TIME", "REMOVED", "CACHED", "CHANGED", "NEW", "FAILED")
"""What a narrow terminal does without, first to last."""
_COLOURS = {
    RunState.READING: "cyan",
    RunState.SCORING: "cyan",
    RunState.WRITING: "cyan",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "yellow",
    RunState.SKIPPED: "yellow",
}


def state_of(run: "RunInfo") -> Text:
    """Its state, coloured."""
    return Text(run.state, style=_COLOURS.get(run.state, ""))


def run_row(run: "RunInfo") -> tuple[str | Text, ...]:
    """A run as a row under `RUNS`."""
    figures = ("",) * 6 if run.changes is None else tuple(f"{count:,}" for _, count in _figures(run.changes))
    return (local_time(run.due_at), state_of(run), *figures, _time(run), _why(run))


def run_facts(run: "RunInfo") -> list[tuple[str, str]]:
    """What is known of a run, in the order in which to show it."""
    progress, changes, drift = run.progress, run.changes, run.drift
    of = f" of {progress.rows:,}" if progress.rows is not None else ""
    facts = [
        ("run", str(run.id)),
        ("due", local_time(run.due_at)),
        ("state", str(run.state)),
        ("why" if run.state is not RunState.FAILED else "error", _why(run)),
        ("job", str(run.job_id or "")),
        ("read", f"{progress.rows_read:,}{of} rows" if progress.rows_read and changes is None else ""),
        ("written", f"{progress.rows_written:,} rows" if progress.rows_written and changes is None else ""),
        *(() if changes is None else ((name, f"{count:,}") for name, count in _figures(changes))),
        ("left out", f"{changes.bad:,}" if changes is not None and changes.bad else ""),
        ("since", str(changes.since or "the beginning: no run before it succeeded") if changes is not None else ""),
        *(() if drift is None else _moved(drift.psi, drift.ks, drift.cosine)),
        ("beyond", ", ".join(drift.over) if drift is not None else ""),
        ("report", shown(run.report or "")),
        ("started", local_time(run.started_at)),
        ("finished", local_time(run.finished_at)),
        ("time", _time(run)),
    ]
    return [(name, value) for name, value in facts if value]


def _figures(changes: "Changes") -> list[tuple[str, int]]:
    names = ("rows", "new", "changed", "removed", "cached", "failed")
    return [(name, getattr(changes, name)) for name in names]


def _moved(psi: float | None, ks: float | None, cosine: float | None) -> list[tuple[str, str]]:
    values = {"psi": psi, "ks": ks, "cosine distance": cosine}
    return [(name, f"{value:.4f}") for name, value in values.items() if value is not None]


def _time(run: "RunInfo") -> str:
    if run.finished_at is None or run.started_at is None:
        return ""
    return seconds_text((run.finished_at - run.started_at).total_seconds())


def _why(run: "RunInfo") -> str:
    if run.drift is not None and run.drift.over:
        return f"results moved: {', '.join(run.drift.over)}"
    return shown(run.error_message or run.error_code or "")
