"""Sinks: where the results of a run go, as a schedule keeps them and a caller writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from contracts.errors import InvalidRequest
from contracts.specs import Spec, explain


class FileSink(Spec):
    """One file that appears whole or not at all: `.jsonl`, `.csv` or `.parquet`."""

    kind: Literal["file"] = "file"
    url: str = Field(min_length=1)
    """A path or an fsspec URL; the suffix says the format, `.gz` or `.zst` behind it (JSONL, CSV) the compression.
    `{date}` stands for the day that a scheduled run is due, in the schedule's zone."""


class FolderSink(Spec):
    """A folder of Parquet files with a manifest, which is written last."""

    kind: Literal["folder"] = "folder"
    url: str = Field(min_length=1)
    """A path or an fsspec URL, with `{date}` as in a file's."""
    rows_per_part: int = Field(default=250_000, ge=1)


class SqlSink(Spec):
    """A table that rows are written to by their id: new ones are inserted, known ones updated."""

    kind: Literal["sql"] = "sql"
    url: str = Field(min_length=1)
    """Any SQLAlchemy URL of a database that can upsert; or `env:NAME`, for one that is in a variable of the process."""
    table: str = Field(min_length=1)
    """`name` or `schema.name`; it is made when it does not exist."""
    columns: dict[str, str] = Field(default_factory=dict)
    """By column: the field of a result that it takes, where the table names them otherwise than the result does."""
    rows_per_transaction: int = Field(default=5_000, ge=1)


class BatchFileSink(Spec):
    """The output file and the error file of an OpenAI batch."""

    kind: Literal["openai"] = "openai"
    url: str = Field(min_length=1)
    """Of the output file, `.jsonl`."""
    errors_url: str | None = None
    """Of the error file; beside the output, `<name>.errors.jsonl`, when not given. Written where there are errors."""


Sink: TypeAlias = Annotated[FileSink | FolderSink | SqlSink | BatchFileSink, Field(discriminator="kind")]
_SINK: TypeAdapter[Sink] = TypeAdapter(Sink)


def parse_sink(value: Any) -> Sink:
    """A sink of what callers write: a path or URL of a file, of a folder with `/` at its end, a mapping, or the object.

    Raises:
        InvalidRequest: It is none; the message names each field that is wrong.
    """
    if isinstance(value, str | Path) and str(value):
        kind: type[FileSink | FolderSink] = FolderSink if str(value).endswith("/") else FileSink
        value = kind(url=str(value))
    if isinstance(value, FileSink | FolderSink | SqlSink | BatchFileSink):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"sink: expected a path, a URL, or a mapping with a kind (file, folder, sql, openai), got {value!r:.80}"
        )
    try:
        return _SINK.validate_python({"kind": "sql" if "table" in value else "file", **value})
    except ValidationError as error:
        raise InvalidRequest(f"sink: {explain(error)}") from None
