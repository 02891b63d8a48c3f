"""Sources: where the rows of a run come from, as a schedule keeps them and a caller writes them."""

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from contracts.errors import InvalidRequest
from contracts.specs import Spec, explain

Format: TypeAlias = Literal["jsonl", "csv", "parquet", "arrow", "txt"]


class Columns(Spec):
    """Which columns of a row are its id and its input."""

    id: str | None = None
    """The caller's ids; a column `id` is taken where there is one when not given."""
    input: str | None = None
    """The input; `input` when neither this nor a template is given."""
    template: str | dict[str, str] | None = None
    """The input made of several columns: `"{title}: {body}"`; a mapping of such gives an object, as `rerank` takes."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Columns":
        if self.input is not None and self.template is not None:
            raise ValueError("give either input or template")
        for text in self.templates().values():
            for _, name, form, conversion in Formatter().parse(text):
                if name is not None and (not name or form or conversion or set(name) & set("[].")):
                    raise ValueError(f"template {text!r}: braces hold the name of a column and nothing else")
        return self

    def templates(self) -> dict[str, str]:
        """Templates by the key that each fills; the key is empty where the input is one text."""
        if self.template is None:
            return {}
        return {"": self.template} if isinstance(self.template, str) else self.template


class FileSource(Spec):
    """Rows of one file, of all that a pattern matches, or of all in a folder; in the order of their names."""

    kind: Literal["files"] = "files"
    url: str = Field(min_length=1)
    """A path, a pattern (`logs/*.jsonl.gz`), a folder, or any of these as an fsspec URL (`s3://bucket/day/`)."""
    format: Format | None = None
    """What the files hold; their suffix says it when not given. A further suffix (`.gz`, `.zst`, …) is how they are
    compressed."""
    columns: Columns = Columns()


class SqlSource(Spec):
    """Rows of a query, streamed by a cursor of the server."""

    kind: Literal["sql"] = "sql"
    url: str = Field(min_length=1)
    """Any SQLAlchemy URL; or `env:NAME`, for one that is in a variable of the process that reads."""
    query: str = Field(min_length=1)
    """One statement that gives rows, in the same order each time: with an ORDER BY."""
    columns: Columns = Columns()


class BatchFileSource(Spec):
    """Requests of an OpenAI batch file: each line has `custom_id`, `method`, `url` and `body`."""

    kind: Literal["openai"] = "openai"
    url: str = Field(min_length=1)
    """A path or an fsspec URL of a `.jsonl` file."""


Source: TypeAlias = Annotated[FileSource | SqlSource | BatchFileSource, Field(discriminator="kind")]
_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)


def parse_source(value: Any) -> Source:
    """A source of what callers write: a path or URL of files, a mapping with a `kind`, or the object itself.

    Raises:
        InvalidRequest: It is none; the message names each field that is wrong.
    """
    if isinstance(value, str | Path):
        value = FileSource(url=str(value)) if str(value) else {}
    if isinstance(value, FileSource | SqlSource | BatchFileSource):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"source: expected a path, a URL, or a mapping with a kind (files, sql, openai), got {type(value).__name__}"
        )
    try:
        return _SOURCE.validate_python({"kind": "sql" if "query" in value else "files", **value})
    except ValidationError as error:
        raise InvalidRequest(f"source: {explain(error)}") from None
