"""Sources and sinks as the command line names them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from contracts.urls import VARIABLE, shown
from producer.cli.options import INPUT, parse_object

if TYPE_CHECKING:
    from contracts.sinks import Sink
    from contracts.sources import Source

SOURCE, SINK = INPUT, "Output"

SourceUrl: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[SOURCE]",
        help="A file, a pattern, a folder, or a URL; with --query a database's URL; or a JSON object.",
    ),
]
SinkUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|FOLDER/|URL",
        help="Where results go; with --table a database's; or a JSON object.",
    ),
]
Query: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SQL", help="Rows of a query; with an ORDER BY.", rich_help_panel=SOURCE)
]
OpenAI: TypeAlias = Annotated[
    bool,
    typer.Option("--openai", help="The source is an OpenAI batch file, the sink its output.", rich_help_panel=SOURCE),
]
Template: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The input, made of columns: '{title}: {body}'.", rich_help_panel=SOURCE),
]
Table: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table that rows are written to, by id.", rich_help_panel=SINK)
]
Report: TypeAlias = Annotated[
    str | None, typer.Option(metavar="FILE|URL", help="Where an HTML report goes.", rich_help_panel=SINK)
]

_WHOLE = "a JSON object says everything of"
_DATABASE = re.compile(rf"{VARIABLE}|(postgres|postgresql|mysql|mariadb|sqlite|mssql|oracle)(\+\w+)?://")


def source_of(
    url: str,
    query: str | None,
    id_column: str | None,
    input_column: str | None,
    template: str | None,
    *,
    openai: bool = False,
) -> dict[str, Any]:
    """What `contracts.sources.parse_source` takes; a JSON object is that as it stands."""
    if url.lstrip().startswith("{"):
        if openai or any(option is not None for option in (query, id_column, input_column, template)):
            raise typer.BadParameter(f"{_WHOLE} the source", param_hint="SOURCE")
        return parse_object(url, "SOURCE")
    given = {"id": id_column, "input": input_column, "template": template}
    columns = {name: value for name, value in given.items() if value is not None}
    if openai:
        if query is not None or columns:
            raise typer.BadParameter("a batch file has ids and inputs of its own, and no query", param_hint="--openai")
        return {"kind": "openai", "url": url}
    if query is not None:
        return {"kind": "sql", "url": url, "query": query, "columns": columns}
    if _DATABASE.match(url):
        raise typer.BadParameter("rows of a database are those of a query: add it", param_hint="--query")
    return {"kind": "files", "url": url, "columns": columns}


def sink_of(url: str, table: str | None, *, openai: bool = False) -> dict[str, Any]:
    """What `contracts.sinks.parse_sink` takes; a JSON object is that as it stands."""
    if url.lstrip().startswith("{"):
        if table is not None:
            raise typer.BadParameter(f"{_WHOLE} the sink", param_hint="--table")
        return parse_object(url, "SINK")
    if table is not None:
        return {"kind": "sql", "url": url, "table": table}
    if _DATABASE.match(url):
        raise typer.BadParameter("rows go to a table of the database: name it", param_hint="--table")
    if openai:
        return {"kind": "openai", "url": url}
    return {"kind": "folder" if url.endswith("/") else "file", "url": url}


def look_at(source: dict[str, Any], sink: dict[str, Any]) -> None:
    """Refuse what can be told without a server: files that are missing, formats that are not known.

    Raises:
        InvalidRequest: A field is wrong, or nothing can be written there.
        InvalidInput: There is no such file.
    """
    from datetime import date

    from contracts.sinks import FileSink, parse_sink
    from contracts.sources import FileSource, parse_source
    from producer.reading.finding import find_files
    from producer.urls import dated
    from producer.writing import open_sink
    from producer.writing.file import check_path

    parsed, where = parse_source(source), parse_sink(sink)
    open_sink(where, day=date.today())
    if isinstance(where, FileSink) and "://" not in where.url:
        check_path(Path(dated(where.url, date.today())))
    if isinstance(parsed, FileSource):
        find_files(parsed.url, parsed.format)


def shown_source(source: "Source") -> str:
    """A source in one line, for a person."""
    return _shown(source.model_dump(mode="json", exclude_defaults=True))


def shown_sink(sink: "Sink") -> str:
    """A sink in one line, for a person."""
    return _shown(sink.model_dump(mode="json", exclude_defaults=True))


def masked(value: Any) -> Any:
    """JSON values without the passwords of URLs."""
    if isinstance(value, dict):
        return {key: masked(one) for key, one in value.items()}
    if isinstance(value, list):
        return [masked(one) for one in value]
    return shown(value) if isinstance(value, str) else value


def _shown(fields: dict[str, Any]) -> str:
    url = shown(fields.pop("url"))
    columns = fields.pop("columns", {})
    said = {**fields, **columns}
    return ", ".join([url, *(f"{name} {value}" for name, value in said.items() if value and name != "kind")])
