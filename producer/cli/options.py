"""Options that several commands have in common, and how their values are read."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import orjson
import typer

from contracts.names import Quantization, Task
from contracts.states import Priority
from producer.cli.completion import callback_urls, model_references

INPUT = "Input"
JOB = "Job"

InputFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="INPUT", help="What to compute: a .jsonl, .txt, .csv or .parquet file.")
]
ModelName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A registered model: `name`, or `name@version`.",
        autocompletion=model_references,
    ),
]
ParamsJson: TypeAlias = Annotated[
    str | None,
    typer.Option("--params", metavar="JSON", help="The task's parameters as a JSON object.", rich_help_panel=JOB),
]
ParamList: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="KEY=VALUE", help="One of them, e.g. precision=float16.", rich_help_panel=JOB),
]
PriorityClass: TypeAlias = Annotated[
    Priority, typer.Option(help="A higher class is always served first.", rich_help_panel=JOB)
]
ExpiresIn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--expires-in",
        metavar="TIME",
        help="How long it may take: seconds, or 90s, 30m, 12h, 3d. What is not done by then is left.",
        rich_help_panel=JOB,
    ),
]
CallbackUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--callback-url",
        metavar="URL",
        help="Where webhooks of the job go.",
        rich_help_panel=JOB,
        autocompletion=callback_urls,
    ),
]
ProgressAt: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--progress-at",
        metavar="PERCENT,…",
        help="Percentages at which it hears of progress, e.g. 25,50,75.",
        rich_help_panel=JOB,
    ),
]
IdColumn: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column or key of your ids.  [default: id]", rich_help_panel=INPUT),
]
InputColumn: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column or key of the inputs.  [default: input]", rich_help_panel=INPUT),
]
SkipBad: TypeAlias = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out lines that cannot be taken, and say which.", rich_help_panel=INPUT),
]
TaskName: TypeAlias = Annotated[
    Task | None, typer.Option("--task", help="What the model has to compute.", rich_help_panel=JOB)
]
Metadata: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata", metavar="KEY=VALUE", help="Sent with its webhooks; may be repeated.", rich_help_panel=JOB
    ),
]
QuantizationName: TypeAlias = Annotated[
    Quantization, typer.Option(help="How workers hold the weights: it buys memory, `auto` speed.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_time(text: str | None, option: str) -> float | None:
    """Seconds, as a number alone or with a unit: `90s`, `30m`, `12h`, `3d`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write seconds, or 90s, 30m, 12h, 3d", param_hint=option)
    return float(match[1]) * _UNITS[match[2]]


def parse_moment(text: str | None, option: str) -> datetime | None:
    """How long ago, `90s`, `30m`, `12h`, `3d`; or a date or time, of this machine's zone unless it names one."""
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d+(?:\.\d+)?[smhd]", text.strip()):
            return datetime.now(UTC) - timedelta(seconds=parse_time(text, option) or 0)
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no moment: write how long ago (30m, 12h, 3d), or 2026-11-20, or 2026-11-20T18:30",
            param_hint=option,
        ) from None


def parse_percentages(text: str | None, option: str) -> list[int]:
    """Whole numbers with commas between them; none when not given."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} are no percentages: write 25,50,75", param_hint=option) from None


def parse_pairs(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`key=value` arguments as a mapping; a value is JSON where it reads as such, and else a string."""
    parsed = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=option)
        try:
            parsed[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed[key] = value
    return parsed


def parse_object(text: str | None, option: str) -> dict[str, Any]:
    """A JSON object; empty when not given."""
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r} is not a JSON object", param_hint=option)
    return value
