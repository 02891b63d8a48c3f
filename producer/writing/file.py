"""Results as one file, in a format that its suffix says; it appears whole or not at all."""

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from contracts.models import ModelSpec
from contracts.sinks import FileSink
from producer.writing.base import Note, Results, noting
from producer.writing.formats import format_of
from producer.writing.places import Place, place_of


class FileWriter:
    """Writes one file; what was cut is written anew."""

    def __init__(self, sink: FileSink, day: date | None) -> None:
        self._place = place_of(sink.url, day)

    def check(self, model: ModelSpec, params: Mapping[str, Any], width: int | None = None) -> None:
        """See that the file can be written."""
        _check(self._place)

    def write(self, results: Results, resume: dict[str, Any] | None, note: Note) -> int:
        """Write the file."""
        schema = results.schema()
        return _write(noting(results.batches(schema), note), schema, self._place, results.job_id)


def check_path(path: Path) -> None:
    """See that results can be written there: before a job is computed, not after.

    Raises:
        InvalidRequest: The suffix is unknown, or the folder does not exist or cannot be written to.
        SinkUnavailable: The disk is full.
    """
    _check(place_of(str(path)))


def write_results(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Write results to a file and return their number; a file that stood there is replaced at the end.

    The columns are position, custom_id, output, error_code, error_message, cached and truncated; `output` is a
    list of a fixed size (float32, float16 or uint8), or text, which is JSON where the field's metadata has `json`.

    Raises:
        InvalidRequest: The path is not one that `check_path` takes.
        SinkUnavailable: The disk takes no more.
    """
    check_path(path)
    return _write(batches, schema, place_of(str(path)))


def _check(place: Place) -> None:
    format_of(place.name)
    place.check_file()


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, place: Place, owner: UUID | None = None) -> int:
    form = format_of(place.name)
    with place.replacing(owner) as whole, form.compressed(whole) as stream:
        return form.write(batches, schema, stream)
