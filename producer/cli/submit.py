"""`batchmill submit`: a file becomes a job."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import InvalidInput
from contracts.states import Priority
from producer.cli import options
from producer.cli.output import BAD_LINES_SHOWN, BadLines, emit, emit_json, emit_pairs, err, show_pairs, warn
from producer.cli.session import session_of
from producer.cli.watch import wait_for
from producer.summary import job_document, job_summary

if TYPE_CHECKING:
    from producer.check import Check
    from producer.reading.lines import Entry

_COUNT_EVERY = 5_000


def submit(
    context: typer.Context,
    input_file: options.InputFile,
    model: options.ModelName,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would be: bad lines, duplicates, cache hits, time.")
    ] = False,
    params: options.ParamsJson = None,
    param: options.ParamList = None,
    priority: options.PriorityClass = Priority.NORMAL,
    expires_in: options.ExpiresIn = None,
    callback_url: options.CallbackUrl = None,
    progress_at: options.ProgressAt = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The same key and content give the same job.", rich_help_panel=options.JOB),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Kept with the job; may be repeated.", rich_help_panel=options.JOB),
    ] = None,
    id_column: options.IdColumn = None,
    input_column: options.InputColumn = None,
    skip_bad: options.SkipBad = False,
    json: options.Json = False,
) -> None:
    """Submit a file as a job and print the job's id."""
    session = session_of(context)
    parsed = {**options.parse_object(params, "--params"), **options.parse_pairs(param, "--param")}
    seconds = options.parse_time(expires_in, "--expires-in")
    percentages = options.parse_percentages(progress_at, "--progress-at")
    labels = options.parse_pairs(metadata, "--metadata")
    lines = _read(input_file, id_column, input_column)
    with session.open_client() as client:
        with closing(_Intake(input_file, lines, skip_bad)) as intake:
            if dry_run:
                found = client.check(model, intake, params=parsed)
                intake.close()
                _report(found, json=json, skip_bad=skip_bad)
                return
            job = client.submit(
                model,
                intake,
                on_bad=intake.on_bad,
                params=parsed,
                priority=priority,
                idempotency_key=idempotency_key,
                metadata=labels,
                expires_in=seconds,
                callback_url=callback_url,
                progress_at=percentages,
            )
        if not json:
            emit(str(job.id))
        if wait:
            wait_for(job, session)
            show_pairs(job_summary(job.info))
        if json:
            emit_json(job_document(job.info))


def _read(path: Path, id_column: str | None, input_column: str | None) -> "Iterator[Entry]":
    from contracts.settings import load_settings  # here and below: `--help` asks for none of it
    from producer.reading.file_source import read

    most = load_settings().max_input_bytes
    return read(path, id_column=id_column, input_column=input_column, max_input_bytes=most)


class _Intake:
    """The lines of a file on their way into a job, counted on stderr while they are read."""

    def __init__(self, path: Path, lines: "Iterable[Entry]", skip_bad: bool) -> None:
        self._path = path
        self._lines = lines
        self._bad = BadLines()
        self.on_bad = self._bad if skip_bad else None
        self._status = err.status(f"reading {path.name}")

    def __iter__(self) -> "Iterator[Entry]":
        self._status.start()
        for number, line in enumerate(self._lines, start=1):
            if number % _COUNT_EVERY == 0:
                self._status.update(f"reading {self._path.name}: {number:,} lines")
            yield line
        self._status.update("storing the job")

    def close(self) -> None:
        self._status.stop()
        self._bad.close()
        self._bad = BadLines()


def _report(found: "Check", *, json: bool, skip_bad: bool) -> None:
    """What a dry run found; exit code 1 when the submission would be refused."""
    seconds = found.estimated_seconds
    facts: dict[str, Any] = {
        "items": found.items,
        "bad": found.bad,
        "distinct": found.distinct,
        "duplicates": found.duplicates,
        "repeated_ids": found.repeated_ids,
        "cached": found.cached,
        "estimated_tokens": found.estimated_tokens,
        "estimated_seconds": seconds,
    }
    if json:
        emit_json({**facts, "errors": [_error(error) for error in found.errors]})
    else:
        for error in found.errors[:BAD_LINES_SHOWN]:
            warn(str(error))
        if found.bad > BAD_LINES_SHOWN:
            warn(f"… and {found.bad - BAD_LINES_SHOWN:,} more bad lines")
        facts["estimated_seconds"] = (
            "not known: the model was measured nowhere yet" if seconds is None else round(seconds)
        )
        emit_pairs(
            (name.replace("_", " "), format(value, "," if type(value) is int else "")) for name, value in facts.items()
        )
    if found.repeated_ids or found.items == 0 or (found.bad and not skip_bad):
        raise typer.Exit(1)


def _error(error: InvalidInput) -> dict[str, str]:
    return {"where": error.where, "reason": error.reason}
