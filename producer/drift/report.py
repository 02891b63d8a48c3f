"""The report of a run as one page that needs nothing else."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from contracts.errors import ConfigurationError, JobNotFound, RunNotFound, WrongState
from contracts.jobs import JobInfo
from contracts.names import Task
from contracts.pages import STYLE
from contracts.runs import Changes, Drift, RunInfo
from contracts.states import RunState
from contracts.urls import shown
from producer.drift import wording
from producer.drift.samples import Samples
from producer.writing.places import place_of
from storage import jobs, runs
from storage.database import Database

RUNS = 10
"""So many of a schedule's runs stand beside the one that is told of."""
_NEEDED = ("jinja2", "matplotlib")
_NUMBERS = {
    Task.CLASSIFY: "score of the best label",
    Task.RERANK: "score of the best document",
    Task.SCORE: "log-likelihood a token",
}


def check_report(url: str, day: date | None = None) -> None:
    """See that a report can be made and written there: before anything is scored.

    Raises:
        ConfigurationError: The libraries that draw it are not installed.
        InvalidRequest: The place cannot be written to.
        SinkUnavailable: It does not answer, or is full.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"a report needs {' and '.join(missing)}, not installed here: pip install 'batchmill[reports]'"
        )
    place_of(url, day).check_file()


def write_report(
    database: Database,
    run: RunInfo,
    changes: Changes,
    drift: Drift | None,
    history: Sequence[RunInfo],
    samples: Samples,
    url: str,
    day: date | None = None,
) -> str:
    """Write the report of a run: one HTML file with its style and its plots inside, whole or not at all.

    Args:
        database: Where the run is.
        run: With a job that is terminal.
        changes: Of this run.
        drift: Of this run; None where there is nothing to compare.
        history: Runs of its schedule, the newest first; this one may be among them, and empty will do.
        samples: Of its job, and of the one that it is compared with.
        url: A path or an fsspec URL.
        day: What `{date}` in it stands for.

    Returns:
        Where it is.

    Raises:
        ConfigurationError: The libraries that draw it are not installed.
        InvalidRequest: The place cannot be written to.
        SinkUnavailable: It does not answer, or is full.
        WrongState: The run has no job.
    """
    check_report(url, day)
    if run.job_id is None:
        raise WrongState(f"run {run.id} is {run.state} and has no job to report of")
    with database.transaction() as connection:
        now: datetime = connection.execute(text("SELECT now()")).scalar_one()
        job = jobs.get(connection, run.job_id)
        job_before = _job_of(connection, changes.since)
    # What is told of it is not in its row yet: that comes with the end of the run.
    told = {"changes": changes, "drift": drift, "state": RunState.SUCCEEDED, "finished_at": run.finished_at or now}
    this = run.model_copy(update=told)
    series = [this, *(other for other in history if other.id != run.id)][: RUNS + 1]
    place = place_of(url, day)
    with place.replacing(run.id) as stream:
        stream.write(render(this, job, job_before, series, samples).encode())
    return place.name


def render(run: RunInfo, job: JobInfo, job_before: JobInfo | None, series: Sequence[RunInfo], samples: Samples) -> str:
    """The page: HTML, the same text for the same arguments.

    Args:
        run: With its changes.
        job: Of the run.
        job_before: Of the one that it is compared with.
        series: This one and those before it, the newest first.
        samples: Of both jobs.
    """
    # Half a second to import, of what only those have who asked for reports.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if run.changes is None:
        raise WrongState(f"run {run.id} has not been compared yet")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    seconds = [_seconds(one) for one in series]
    headings, lines = wording.table(series, seconds)
    thresholds = run.spec.thresholds
    return environment.get_template("report.html.jinja").render(
        style=Markup(STYLE),
        title=run.schedule or f"Run {run.id}",
        run=run,
        job=job,
        job_before=job_before,
        due=wording.moment(run.due_at),
        finished=wording.moment(run.finished_at),
        verdict=wording.verdict(run.changes, run.drift, thresholds),
        tiles=wording.tiles(run.changes, run.drift, thresholds, seconds[0]),
        by_chance=wording.by_chance(run.drift, thresholds) if run.drift else [],
        outputs=_outputs(job.task, samples),
        unchanged=samples.distances.unchanged if samples.distances else None,
        over_time=_over_time(series, seconds),
        headings=headings,
        lines=lines,
        facts=_facts(run),
    )


def _job_of(connection: Connection, run_id: UUID | None) -> JobInfo | None:
    """The job of the run that was compared with, where both are still there."""
    with suppress(JobNotFound, RunNotFound):
        if run_id is not None and (job_id := runs.get(connection, run_id).job_id) is not None:
            return jobs.get(connection, job_id)
    return None


def _outputs(task: Task, samples: Samples) -> list[Any]:
    """Plots of what came out."""
    from producer.drift import plots

    if samples.distances is not None:
        return [plots.distances(samples.distances.changed)] if len(samples.distances.changed) else []
    now, before = samples.now, samples.before
    if now is None or not len(now.values):
        return []
    found = []
    if samples.labelled:
        found.append(
            plots.labels(
                [str(label) for label in (before.labels if before else ())], [str(label) for label in now.labels]
            )
        )
    what = _NUMBERS[task] if samples.labelled or task is not Task.CLASSIFY else "output"
    found.append(plots.numbers(before.values if before else now.values[:0], now.values, what))
    return found


def _over_time(series: Sequence[RunInfo], seconds: Sequence[float | None]) -> list[Any]:
    """Plots of the runs that came to an end, where there are several."""
    from producer.drift import plots

    ended = [(run, took) for run, took in zip(series, seconds, strict=True) if run.changes is not None][::-1]
    if len(ended) < 2:
        return []
    ordered = [run for run, _ in ended]
    found = [plots.work(ordered, [took for _, took in ended])]
    if any(run.drift and wording.figures(run.drift) for run in ordered):
        found.insert(0, plots.history(ordered, series[0].spec.thresholds))
    return found


def _seconds(run: RunInfo) -> float | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return (run.finished_at - run.started_at).total_seconds()


def _facts(run: RunInfo) -> list[tuple[str, Any]]:
    """Where it came from and went; addresses without their passwords."""
    source, sink = run.spec.source, run.spec.sink
    facts: list[tuple[str, Any]] = [("source", shown(source.url))]
    facts += [("query", query)] if (query := getattr(source, "query", None)) else []
    facts += [("sink", shown(sink.url))]
    facts += [("table", table)] if (table := getattr(sink, "table", None)) else []
    facts += [("run", run.id), ("job", run.job_id), ("started", wording.moment(run.started_at))]
    return facts
