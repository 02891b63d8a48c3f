"""What a notebook shows of jobs and models: HTML with styles of its own, legible on light and on dark pages."""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import orjson

from contracts.jobs import JobInfo
from contracts.models import ModelSpec
from contracts.states import JobState
from producer.pace import Pace, standing, trouble
from producer.progress import Silent
from producer.summary import COMPRESS, byte_size, job_summary, local_time, subject

_PARTS = (("cached", "#5b9bd5"), ("computed", "#3aa675"), ("failed", "#d9534f"), ("waiting", "#8886"))
_STATES = {
    JobState.RUNNING: "#2a8fbd",
    JobState.PAUSED: "#a264b0",
    JobState.SUCCEEDED: "#3aa675",
    JobState.FAILED: "#d9534f",
    JobState.CANCELLED: "#b8860b",
    JobState.EXPIRED: "#b8860b",
}
_CELL = "padding:1px 14px 1px 0;text-align:left;vertical-align:top;white-space:nowrap;background:none;border:none"
_NUMBER = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"


def in_notebook() -> bool:
    """Whether a kernel runs this process, so that what is displayed is drawn by a browser."""
    ipython = sys.modules.get("IPython")  # who runs in a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar(Silent):
    """One output for each job, brought up to date in place."""

    def __init__(self) -> None:
        self._paces: dict[object, Pace] = {}
        self._shown: dict[object, tuple[Any, dict[str, str]]] = {}

    def show(self, info: JobInfo) -> None:
        """Draw the job where it was drawn before."""
        from IPython.display import display

        pace = self._paces.setdefault(info.id, Pace())
        pace.look(info.counts.distinct - info.counts.waiting)
        found = standing(info, pace.rate)
        facts = [found.percent, found.done, found.parts, found.rate, found.clock]
        data = {
            "text/html": progress_html(info, pace.rate),
            "text/plain": "  ".join([info.state, *filter(None, facts)]),
        }
        if info.id not in self._shown:
            handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
            self._shown[info.id] = (handle, data)
            return
        handle, before = self._shown[info.id]
        if data != before:
            handle.update(data, raw=True)
            self._shown[info.id] = (handle, data)


def progress_html(info: JobInfo, rate: float | None) -> str:
    """A job that is waited for, on three lines."""
    found = standing(info, rate)
    step = found.parts if info.operation == COMPRESS else ""  # of others, the legend tells
    facts = " · ".join(escape(part) for part in (found.percent, found.done, step, found.rate, found.clock) if part)
    return _box(f"{_state(info.state)} {escape(subject(info))} · {facts}", _bar(info), _legend(info), _why(info))


def job_html(info: JobInfo) -> str:
    """All that one asks of a job at a glance."""
    compression = info.operation == COMPRESS
    facts = [
        ("job", str(info.id)),
        (
            "task",
            info.operation if compression or not info.params else f"{info.task} {orjson.dumps(info.params).decode()}",
        ),
        ("priority", f"{info.priority}, pool {info.pool}"),
        ("retry of", str(info.retry_of or "")),
        ("metadata", orjson.dumps(info.metadata).decode() if info.metadata else ""),
        ("submitted", local_time(info.created_at)),
        ("started", local_time(info.started_at)),
        ("finished", local_time(info.finished_at)),
        ("expires", local_time(info.expires_at) if not info.state.terminal else ""),
    ]
    summary = [(name, value) for name, value in job_summary(info) if name not in (*dict(_PARTS), "not computed")]
    rows = "".join(_row((name, value)) for name, value in facts if value)
    figures = "".join(_row((name, value)) for name, value in summary)
    side_by_side = "display:flex;flex-wrap:wrap;align-items:flex-start;gap:0 2.5em"
    tables = f'<div style="{side_by_side}">{_table(rows)}{_table(figures)}</div>'
    return _box(f"{_state(info.state)} <b>{escape(subject(info))}</b>", _bar(info), _legend(info), _why(info), tables)


def jobs_html(infos: Iterable[JobInfo]) -> str:
    """A listing of jobs."""
    rows = [
        (
            f"<code>{info.id}</code>",
            _state(info.state),
            escape(subject(info)),
            (f"{info.counts.items:,}",),
            (standing(info, None).percent,),
            (f"{info.counts.failed:,}",),
            local_time(info.created_at),
        )
        for info in infos
    ]
    return _listing(("job", "state", "model", ("items",), ("done",), ("failed",), "submitted"), rows, "no jobs")


def models_html(specs: Iterable[ModelSpec]) -> str:
    """A listing of models."""
    rows = [
        (
            f"<b>{escape(spec.reference)}</b>",
            escape(spec.task),
            escape(spec.quantization),
            escape(spec.pool),
            (byte_size(spec.memory_bytes),),
            escape(spec.source),
        )
        for spec in specs
    ]
    return _listing(("model", "task", "quantization", "pool", ("memory",), "source"), rows, "no models")


class ModelList(list[ModelSpec]):
    """Models; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        return models_html(self)


_Cells = Sequence[str | tuple[str]]
"""HTML; a number is in a tuple of its own."""


def _listing(headers: _Cells, rows: Sequence[_Cells], nothing: str) -> str:
    if not rows:
        return _box(nothing)
    return _box(_table(_cells(headers, "th") + "".join(_cells(row, "td") for row in rows)))


def _cells(cells: _Cells, tag: str) -> str:
    made = (
        f'<{tag} style="{_NUMBER}">{cell[0]}</{tag}>'
        if isinstance(cell, tuple)
        else f'<{tag} style="{_CELL}">{cell}</{tag}>'
        for cell in cells
    )
    return f'<tr style="background:none">{"".join(made)}</tr>'


def _box(*parts: str) -> str:
    inside = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div style="font-size:13px;line-height:1.6;max-width:60em;overflow-x:auto">{inside}</div>'


def _table(rows: str) -> str:
    return f'<table style="border-collapse:collapse;border:none;margin:4px 0;color:inherit;font:inherit">{rows}</table>'


def _row(pair: tuple[str, str]) -> str:
    name, value = pair
    return (
        f'<tr style="background:none"><td style="{_CELL};opacity:.65">{escape(name)}</td>'
        f'<td style="{_CELL};white-space:normal;overflow-wrap:anywhere">{escape(value)}</td></tr>'
    )


def _state(state: JobState) -> str:
    return f'<span style="color:{_STATES.get(state, "inherit")};font-weight:bold">{escape(state)}</span>'


def _bar(info: JobInfo) -> str:
    """What became of the inputs, as parts of one bar."""
    counts = info.counts
    parts = "".join(
        f'<div style="flex:{getattr(counts, name)} 0 0;background:{colour}"></div>'
        for name, colour in _PARTS
        if getattr(counts, name)
    )
    return (
        f'<div role="img" aria-label="{counts.distinct - counts.waiting:,} of {counts.distinct:,} inputs are done" '
        f'style="display:flex;height:10px;border-radius:5px;overflow:hidden;background:#8883">{parts}</div>'
    )


def _legend(info: JobInfo) -> str:
    return " &nbsp; ".join(
        f'<span style="display:inline-block;width:9px;height:9px;border-radius:2px;background:{colour}"></span> '
        f"{count:,} {'not computed' if name == 'waiting' and info.state.terminal else name}"
        for name, colour in _PARTS
        if (count := getattr(info.counts, name))
    )


def _why(info: JobInfo) -> str:
    reason = trouble(info) or (f"{info.error_code}: {info.error_message}" if info.error_code else "")
    return f'<span style="color:{_STATES.get(info.state, "inherit")}">{escape(reason)}</span>' if reason else ""
