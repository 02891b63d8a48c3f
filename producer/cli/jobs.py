"""`batchmill jobs`: list, show, read, and what ends, holds or continues them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import orjson
import typer
from rich.text import Text

from contracts.errors import InvalidRequest
from contracts.names import Task
from contracts.states import JobState
from producer.cli.completion import job_ids, model_references, pools
from producer.cli.options import Json, parse_moment
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, err, fail, say
from producer.cli.session import session_of
from producer.cli.watch import JobIds, summary_of, watch
from producer.pace import standing
from producer.summary import COLOURS, COMPRESS, job_document, local_time, subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from contracts.jobs import JobInfo
    from producer.job import Job

app = typer.Typer(
    help="Jobs: list, show, watch, read their results, cancel, pause, resume, retry.", no_args_is_help=True
)

_HEADERS = ("ID", "STATE", "MODEL", "POOL", "PRIORITY", "ITEMS", "DONE", "FAILED", "SUBMITTED")
_DROP = ("PRIORITY", "POOL", "SUBMITTED", "ITEMS")
"""What a narrow terminal does without, first to last."""

JobId: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id, or its link.", autocompletion=job_ids)
]


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Only jobs of this model: `name`, of any version, or `name@version`.",
            autocompletion=model_references,
        ),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="Only jobs that compute this.")] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only jobs of this pool.", autocompletion=pools)
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only jobs submitted since: 30m, 12h, 3d ago, or 2026-11-20.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs submitted before; the same.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    json: Json = False,
) -> None:
    """The newest jobs first."""
    asked: dict[str, Any] = {
        "states": state or (),
        "model": model,
        "task": task,
        "pool": pool,
        "since": parse_moment(since, "--since"),
        "until": parse_moment(until, "--until"),
    }
    with session_of(context).open_client() as client:
        found = [job.info for job in client.jobs(**asked, limit=limit)]
    if json:
        emit_json([job_document(info) for info in found])
    elif found:
        emit_table(_HEADERS, [_row(info) for info in found], right=("ITEMS", "DONE", "FAILED"), drop=_DROP)
        if len(found) == limit:
            say(f"the newest {limit:,}; --limit shows more")
    else:
        say("no job is like that" if any(asked.values()) else "no jobs yet: batchmill submit FILE --model NAME")


@app.command()
def show(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Everything that is known of a job."""
    with session_of(context).open_client() as client:
        job = client.job(job_id)
        info, summary = job.info, summary_of(job)
    if json:
        emit_json(job_document(info))
        return
    facts = [
        ("id", str(info.id)),
        ("state", str(info.state)),
        ("paused by" if info.state is JobState.PAUSED else "error", _reason(info)),
        ("retry of", str(info.retry_of or "")),
        ("model", info.model),
        ("task", info.operation),
        ("params", "" if info.operation == COMPRESS else orjson.dumps(info.params).decode()),
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
    emit_pairs([*((name, value) for name, value in facts if value), *summary])


app.command("watch")(watch)


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
        emit_json([job_document(job.info) for job in found])
    if len(found) < len(job_ids):
        raise typer.Exit(1)


def _reason(info: "JobInfo") -> str:
    return f"{info.error_code}: {info.error_message}" if info.error_code else ""


def _row(info: "JobInfo") -> tuple[str | Text, ...]:
    counts = info.counts
    return (
        str(info.id),
        Text(info.state, style=COLOURS.get(info.state, "")),
        subject(info),
        info.pool,
        str(info.priority),
        f"{counts.items:,}",
        standing(info, None).percent,
        f"{counts.failed:,}",
        local_time(info.created_at),
    )
