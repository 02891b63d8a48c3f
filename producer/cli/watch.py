"""`batchmill jobs watch`, and the waiting of the commands that submit."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from contracts.errors import JobFailed
from producer.cli.completion import job_ids
from producer.cli.options import Json
from producer.cli.output import emit_json, fail, show_pairs
from producer.cli.session import Session, session_of
from producer.summary import compression_summary, job_document, job_summary

if TYPE_CHECKING:
    from producer.job import Job

JobIds: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids of jobs, or their links.", autocompletion=job_ids)
]


def watch(context: typer.Context, job_ids: JobIds, json: Json = False) -> None:
    """Follow jobs until they are done; exit code 1 unless each succeeded. Ctrl-C ends the watching alone."""
    from producer.progress import choose_progress
    from producer.waiting import wait_for_all

    session = session_of(context)
    with session.open_client() as client:
        jobs = [client.job(job_id) for job_id in dict.fromkeys(job_ids)]
        session.farewell = _farewell(jobs)
        wait_for_all(jobs, choose_progress())
        if len(jobs) == 1:
            show_pairs(summary_of(jobs[0]))
        failures = [failure for job in jobs if (failure := _failure(job))]
    if json:
        documents = [job_document(job.info) for job in jobs]
        emit_json(documents if len(jobs) > 1 else documents[0])
    for failure in failures:
        fail(str(failure))
    if failures:
        raise typer.Exit(1)


def wait_for(job: "Job", session: Session) -> None:
    """Show a bar until the job is done; Ctrl-C ends the waiting alone.

    Raises:
        JobFailed: It did not succeed.
    """
    session.farewell = _farewell([job])
    job.wait(progress=True)


def summary_of(job: "Job") -> list[tuple[str, str]]:
    """What a job came to, as names and values; of a compression also what came of it."""
    from producer.compression.job import CompressionJob

    if isinstance(job, CompressionJob):
        return compression_summary(job.info, job.compression)
    return job_summary(job.info)


def _farewell(jobs: "list[Job]") -> str:
    ids = " ".join(str(job.id) for job in jobs)
    return f"interrupted; {f'job {ids} goes' if len(jobs) == 1 else 'the jobs go'} on: batchmill jobs watch {ids}"


def _failure(job: "Job") -> JobFailed | None:
    try:
        job.check_success()
    except JobFailed as error:
        return error
    return None
