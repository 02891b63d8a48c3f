"""Rows of whatever a caller has: files, a list, the inputs of a job of the past."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from contracts.errors import InvalidInput, InvalidRequest, JobNotFound
from contracts.events import SCHEME
from contracts.jobs import JobInfo
from contracts.sources import Format
from producer.job import Job
from producer.reading.file_source import read
from producer.reading.files import File
from producer.reading.finding import find_files
from producer.reading.lines import Entry, raw_lines
from producer.reading.picking import NoColumn
from storage import inputs, jobs
from storage.database import Database

PAGE = 10_000
JOB = "job:"
"""What a text begins with that names a job by its id, and no file."""
_WANTED = (
    "give a .jsonl, .csv, .parquet, .arrow or .txt file (.gz and the like too; a pattern, a folder, an fsspec URL), a "
    "list of inputs or of {'input': …, 'label': …}, or a job (its handle, or 'job:<id>')"
)


class Row(NamedTuple):
    """One row."""

    where: str
    """What names it in messages: `texts.jsonl, line 17`."""
    input: Any
    label: Any
    """None where it has none."""


def rows_of(database: Database, data: Any, max_bytes: int) -> Iterator[Row]:
    """The rows of files, a list, or a job.

    Args:
        database: Where jobs are.
        data: A path, a pattern, a folder, or one of these as an fsspec URL; `job:<id>`, a job's handle, info or id; or
            an iterable of inputs, of which those that are objects with a key `input` may have a `label` beside it.
        max_bytes: What a line of a file may take.

    Raises:
        InvalidRequest: It is none of these.
        InvalidInput: A row cannot be read; its place is named.
        JobNotFound: There is no such job.
    """
    match data:
        case Job():
            return _of_job(database, data.id)
        case JobInfo():
            return _of_job(database, data.id)
        case UUID():
            return _of_job(database, data)
        case str() if data.startswith((JOB, SCHEME)):
            return _of_job(database, _job_id(data))
        case str() | Path():
            return _of_file(data, max_bytes)
        case Iterable() if not isinstance(data, bytes | Mapping):
            return (_of_value(f"item {number}", value) for number, value in enumerate(data, 1))
        case _:
            raise InvalidRequest(f"{type(data).__name__} is no data: {_WANTED}")


def _job_id(text: str) -> UUID:
    try:
        return UUID(text.removeprefix(JOB).removeprefix(SCHEME))
    except ValueError:
        raise JobNotFound(f"{text!r} names no job; `batchmill jobs list` shows those that exist") from None


def _of_job(database: Database, job_id: UUID) -> Iterator[Row]:
    with database.transaction() as connection:
        items = jobs.get(connection, job_id).counts.items
    for start in range(0, items, PAGE):
        with database.transaction() as connection:
            page = inputs.of_job(connection, job_id, start, start + PAGE)
        yield from (Row(f"item {start + place} of job {job_id}", value, None) for place, value in enumerate(page, 1))


def _of_value(where: str, value: Any) -> Row:
    if not isinstance(value, Mapping) or "input" not in value:
        return Row(where, value, None)
    _check_keys(where, value)
    return Row(where, value["input"], value.get("label"))


def _check_keys(where: str, value: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in value if key not in ("id", "input", "label"))
    if unknown:
        raise InvalidInput(f"the object has {unknown[0]!r:.40} beside 'input', which nothing would use", where)


def _of_file(path: str | Path, max_bytes: int) -> Iterator[Row]:
    files = find_files(path)
    if files[0].format == "jsonl":
        for file in files:
            yield from _of_lines(file, max_bytes)
        return
    entries = read(path, max_input_bytes=max_bytes)
    for entry, label in zip(entries, _labels(path, files[0].format, max_bytes), strict=False):
        if entry.error is not None:
            raise entry.error
        yield Row(entry.where, entry.value, None if label is None or label.value == "" else label.value)


def _labels(path: str | Path, kind: Format, max_bytes: int) -> Iterable[Entry | None]:
    """The column `label` of a file with columns, where it has one."""
    if kind == "txt":
        return repeat(None)
    try:
        return read(path, input_column="label", max_input_bytes=max_bytes)
    except NoColumn:
        return repeat(None)


def _of_lines(file: File, max_bytes: int) -> Iterator[Row]:
    for raw in raw_lines(file, max_bytes):
        where = f"{file.name}, line {raw.number}"
        if raw.problem is not None:
            raise InvalidInput(raw.problem, where)
        if not raw.data.strip():
            continue
        try:
            value = orjson.loads(raw.data)
        except ValueError as error:
            raise InvalidInput(f"not JSON: {error}", where) from None
        if isinstance(value, dict) and "input" not in value:
            raise InvalidInput("the object has no key 'input'", where)
        yield _of_value(where, value)
