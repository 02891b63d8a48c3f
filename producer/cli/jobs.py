"""`batchmill jobs`: list, show, watch, read, and what ends, holds or continues them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import orjson
import typer
from rich.text import Text

from contracts.errors import InvalidRequest
from contracts.states import JobState
from producer.cli.options import Json
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, err, fail, local_time, say, show_pairs
from producer.cli.session import Session, session_of
from producer.summary import figures, job_summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from contracts.jobs import JobInfo
    from producer.job import Job

app = typer.Typer(
    help="Jobs: list, show, watch, read their results, cancel, pause, resume, retry.", no_args_is_help=True
)

JobId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its link.")]
JobIds: TypeAlias = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs, or their links.")]

_COLOURS = {
    JobState.RUNNING: "cyan",
    JobState.PAUSED: "magenta",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.EXPIRED: "yellow",
}


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    json: Json = False,
) -> None:
    """The newest jobs first."""
    with session_of(context).open_client() as client:
        found = [job.info for job in client.jobs(states=state or (), limit=limit)]
    if json:
        emit_json([document(info) for info in found])
        return
    headers = ("ID", "STATE", "MODEL", "PRIORITY", "ITEMS", "DONE", "FAILED", "SUBMITTED")
    emit_table(headers, [_row(info) for info in found], right=("ITEMS", "DONE", "FAILED"))


@app.command()
def show(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Everything that is known of a job."""
    with session_of(context).open_client() as client:
        info = client.job(job_id).info
    if json:
        emit_json(document(info))
        return
    facts = [
        ("id", str(info.id)),
        ("state", str(info.state)),
        ("paused by" if info.state is JobState.PAUSED else "error", _reason(info)),
        ("retry of", str(info.retry_of or "")),
        ("model", info.model),
        ("task", str(info.task)),
        ("params", orjson.dumps(info.params).decode()),
        ("priority", str(info.priority)),
        ("pool", info.pool),
        ("idempotency key", info.idempotency_key or ""),
        ("callback", (info.callback_url or "").partition("?")[0]),  # a query may hold a token
        ("metadata", orjson.dumps(info.metadata).decode() if info.metadata else ""),
        ("submitted", local_time(info.created_at)),
        ("started", local_time(info.started_at)),
        ("expires", local_time(info.expires_at)),
        ("finished", local_time(info.finished_at)),
    ]
    emit_pairs([*((name, value) for name, value in facts if value), *job_summary(info)])


@app.command()
def watch(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Follow a job until it is done."""
    session = session_of(context)
    with session.open_client() as client:
        job = client.job(job_id)
        wait_for(job, session)
    show_pairs(job_summary(job.info))
    if json:
        emit_json(document(job.info))


@app.command()
def results(
    context: typer.Context,
    job_id: JobId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .parquet, .jsonl or .csv file instead of stdout."),
    ] = None,
) -> None:
    """What became of each item of a finished job: JSON Lines on stdout, or a file."""
    with session_of(context).open_client() as client:
        job = client.job(job_id)
        if output is None:
            job.write_jsonl(sys.stdout.buffer)
            return
        with err.status(f"writing {output}"):
            job.write(output)
    say(f"{job.counts.items:,} results in {output}")


@app.command()
def cancel(context: typer.Context, job_ids: JobIds, json: Json = False) -> None:
    """End jobs: what was computed stays in the cache, and what is done of them can be read."""

    def one(job: "Job") -> "Job":
        counts = job.cancel().counts
        say(f"job {job.id} is cancelled: {counts.distinct - counts.waiting:,} of {counts.distinct:,} inputs were done")
        return job

    _each(context, job_ids, one, json=json)


@app.command()
def pause(context: typer.Context, job_ids: JobIds, json: Json = False) -> None:
    """Hold jobs until they are resumed; what workers hold of them is finished."""

    def one(job: "Job") -> "Job":
        say(f"job {job.pause().id} is paused: batchmill jobs resume {job.id}")
        return job

    _each(context, job_ids, one, json=json)


@app.command()
def resume(context: typer.Context, job_ids: JobIds, json: Json = False) -> None:
    """Go on with jobs that are paused."""

    def one(job: "Job") -> "Job":
        say(f"job {job.resume().id} goes on: it is {job.state}")
        return job

    _each(context, job_ids, one, json=json)


@app.command("retry-failed")
def retry_failed(context: typer.Context, job_ids: JobIds, json: Json = False) -> None:
    """Submit the items that jobs have no output for as new jobs, and print their ids; again gives the same ones."""

    def one(job: "Job") -> "Job":
        retry = job.retry_failed()
        say(f"{retry.counts.items:,} items of job {job.id} are job {retry.id}")
        if not json:
            emit(str(retry.id))
        return retry

    _each(context, job_ids, one, json=json)


def _each(context: typer.Context, job_ids: list[str], act: "Callable[[Job], Job]", *, json: bool) -> None:
    """Do it to each job; one that cannot have it done is said, and does not keep the others from it."""
    found = []
    with session_of(context).open_client() as client:
        for job_id in job_ids:
            try:
                found.append(act(client.job(job_id)))
            except InvalidRequest as error:
                fail(str(error))
    if json:
        emit_json([document(job.info) for job in found])
    if len(found) < len(job_ids):
        raise typer.Exit(1)


def _reason(info: "JobInfo") -> str:
    return f"{info.error_code}: {info.error_message}" if info.error_code else ""


def document(info: "JobInfo") -> dict[str, Any]:
    """A job as JSON values, with the figures that follow from its row."""
    return {**info.model_dump(mode="json"), "figures": figures(info)}


def wait_for(job: "Job", session: Session) -> None:
    """Show a bar until the job is done; Ctrl-C ends the waiting alone.

    Raises:
        JobFailed: It did not succeed.
    """
    session.farewell = f"interrupted; job {job.id} goes on: batchmill jobs watch {job.id}"
    job.wait(progress=True)


def _row(info: "JobInfo") -> tuple[str | Text, ...]:
    counts = info.counts
    done = (counts.distinct - counts.waiting) / counts.distinct if counts.distinct else 0.0
    return (
        str(info.id),
        Text(info.state, style=_COLOURS.get(info.state, "")),
        info.model,
        str(info.priority),
        f"{counts.items:,}",
        f"{int(100 * done)} %",
        f"{counts.failed:,}",
        local_time(info.created_at),
    )
