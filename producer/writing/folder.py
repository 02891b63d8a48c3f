"""Results as a folder of Parquet files with a manifest, which is written last."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import IO, Any
from uuid import UUID

import orjson
import pyarrow as pa

from contracts.errors import InvalidRequest
from contracts.models import ModelSpec
from contracts.sinks import FolderSink
from producer.writing.base import Note, Results
from producer.writing.cutting import cut
from producer.writing.parquet_file import write_parquet
from producer.writing.places import place_of

MANIFEST = "_manifest.json"
"""Names its run's parts. The underscore keeps it out of what tools take for data."""
_OURS = re.compile(
    r"part-\d{5,}-[0-9a-f-]{36}\.parquet|\.(part-\d{5,}-[0-9a-f-]{36}\.parquet|_manifest\.json)\..*partial"
)


class FolderWriter:
    """Writes parts of so many rows each.

    A part's name carries the id of the job, so that those of two runs never share one. The manifest is replaced at once
    when all parts stand; then the parts of other runs are removed.
    """

    def __init__(self, sink: FolderSink, day: date | None) -> None:
        self._folder = place_of(sink.url, day)
        self._rows = sink.rows_per_part

    def check(self, model: ModelSpec, params: Mapping[str, Any], width: int | None = None) -> None:
        """See that files can be written there."""
        self._folder.check_folder()

    def write(self, results: Results, resume: dict[str, Any] | None, note: Note) -> int:
        """Write the parts that do not stand yet, and the manifest."""
        schema = results.schema()
        parts = self._standing(results.job_id, (resume or {}).get("parts", []))
        rows = sum(int(part["rows"]) for part in parts)
        for batches in cut(results.batches(schema, rows), self._rows):
            part = self._write_part(results.job_id, len(parts), batches, schema)
            parts.append(part)
            rows += part["rows"]
            note({"parts": list(parts)}, rows)
        if len(self._standing(results.job_id, parts)) < len(parts):
            raise InvalidRequest(f"{self._folder.name}: files of this run are gone: write no two runs there at once")
        self._write_manifest(results, schema, parts, rows)
        self._remove_others({_name(results.job_id, number) for number in range(len(parts))})
        return rows

    def _standing(self, job_id: UUID, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the parts up to the first that is not there as it was written."""
        sizes = self._folder.sizes()
        for number, part in enumerate(parts):
            if sizes.get(_name(job_id, number)) != part["bytes"]:
                return parts[:number]
        return list(parts)

    def _write_part(
        self, job_id: UUID, number: int, batches: Iterator[pa.RecordBatch], schema: pa.Schema
    ) -> dict[str, Any]:
        with self._folder.within(_name(job_id, number)).replacing() as stream:
            measured = _Measured(stream)
            rows = write_parquet(batches, schema, measured)  # type: ignore[arg-type]
        return {"rows": rows, "bytes": measured.size, "sha256": measured.sha256.hexdigest()}

    def _write_manifest(self, results: Results, schema: pa.Schema, parts: list[dict[str, Any]], rows: int) -> None:
        target = results.target
        manifest = {
            "job": results.job_id,
            "model": target.model.reference,
            "task": target.model.task,
            "params": target.params,
            "rows": rows,
            "schema": [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema],
            "parts": [{"file": _name(results.job_id, number), **part} for number, part in enumerate(parts)],
        }
        with self._folder.within(MANIFEST).replacing() as stream:
            stream.write(orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def _remove_others(self, current: set[str]) -> None:
        for name in self._folder.sizes():
            if _OURS.fullmatch(name) and name not in current:
                self._folder.within(name).remove()


def _name(job_id: UUID, number: int) -> str:
    return f"part-{number:05}-{job_id}.parquet"


class _Measured:
    """A stream that counts and hashes what goes through."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True
