"""`batchmill schedules`: what begins by itself, and what became of each run."""

import json as json_library
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.text import Text

from contracts.states import Priority, RunState
from contracts.urls import shown
from producer.cli import options, places
from producer.cli.completion import callback_urls, schedule_names
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, say, warn
from producer.cli.runs import DROP, RUNS, run_facts, run_row, state_of
from producer.cli.session import session_of
from producer.summary import local_time

if TYPE_CHECKING:
    from contracts.runs import ScheduleInfo

app = typer.Typer(help="Schedules: runs that begin by themselves, and what became of them.", no_args_is_help=True)

WHEN = "When"
Name: TypeAlias = Annotated[
    str, typer.Argument(metavar="NAME", help="The schedule's name.", autocompletion=schedule_names)
]

_SCHEDULES = ("NAME", "STATE", "CRON", "ZONE", "MODEL", "NEXT", "LAST")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    cron: Annotated[
        str,
        typer.Argument(metavar="CRON", help="Minute, hour, day, month, weekday: '30 2 * * *' is 02:30 daily."),
    ],
    source: Annotated[
        str,
        typer.Option(
            metavar="FILE-OR-URL",
            help="A file, a pattern, a folder; with --query a database's URL, or env:NAME; or a JSON object.",
            rich_help_panel=places.SOURCE,
        ),
    ],
    model: options.ModelName,
    sink: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER/|URL",
            help="A file, or a folder; with --table a database's URL, or env:NAME; or a JSON object. "
            "{date} is the day it is due.",
            rich_help_panel=places.SINK,
        ),
    ],
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="The clock that cron goes by: Europe/Berlin.", rich_help_panel=WHEN)
    ] = "UTC",
    overlap: Annotated[
        str,
        typer.Option(
            metavar="skip|queue|cancel",
            help="When a run is due while another is open: skip it, let it wait, or cancel the other.",
            rich_help_panel=WHEN,
        ),
    ] = "skip",
    catch_up: Annotated[
        str,
        typer.Option(
            metavar="latest|all|none",
            help="Which runs to make up for that were missed in an outage.",
            rich_help_panel=WHEN,
        ),
    ] = "latest",
    query: places.Query = None,
    openai: places.OpenAI = False,
    id_column: options.IdColumn = None,
    input_column: options.InputColumn = None,
    template: places.Template = None,
    skip_bad: options.SkipBad = False,
    table: places.Table = None,
    task: options.TaskName = None,
    params: options.ParamsJson = None,
    param: options.ParamList = None,
    priority: options.PriorityClass = Priority.BULK,
    metadata: options.Metadata = None,
    callback_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Hears run.completed, run.failed and schedule.drift.",
            rich_help_panel=options.JOB,
            autocompletion=callback_urls,
        ),
    ] = None,
    report: places.Report = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How far results may move: psi=0.2, ks=…, cosine=0.05, or null.",
            rich_help_panel=options.JOB,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Have a source scored into a sink whenever a cron line says."""
    asked: dict[str, Any] = {
        "source": places.source_of(source, query, id_column, input_column, template, openai=openai),
        "sink": places.sink_of(sink, table, openai=openai),
        "params": {**options.parse_object(params, "--params"), **options.parse_pairs(param, "--param")},
        "metadata": options.parse_pairs(metadata, "--metadata"),
        "thresholds": options.parse_pairs(threshold, "--threshold"),
        "overlap": overlap,
        "catch_up": catch_up,
    }
    with session_of(context).open_client() as client:
        made = client.schedules.add(
            name,
            cron,
            model=model,
            timezone=timezone,
            task=task,
            priority=priority,
            callback_url=callback_url,
            report=report,
            on_bad="skip" if skip_bad else "stop",
            **asked,
        )
    if json:
        emit_json(_document(made))
    else:
        emit(made.name)
        say(f"schedule {made.name} is due next {local_time(made.next_due_at)}; a runner carries it out")


@app.command("list")
def list_schedules(context: typer.Context, json: options.Json = False) -> None:
    """Every schedule, with its newest run."""
    with session_of(context).open_client() as client:
        found = client.schedules.list()
    if json:
        emit_json([_document(one) for one in found])
    elif found:
        emit_table(_SCHEDULES, [_schedule_row(one) for one in found], drop=("ZONE", "MODEL"))
    else:
        say("no schedules yet: batchmill schedules add NAME CRON --source … --model … --sink …")


@app.command()
def show(context: typer.Context, name: Name, json: options.Json = False) -> None:
    """Everything that is known of a schedule, and of its newest run."""
    with session_of(context).open_client() as client:
        found = client.schedules.get(name)
    if json:
        emit_json(_document(found))
        return
    spec = found.spec
    facts = [
        ("name", found.name),
        ("state", "paused" if found.paused_at else "active"),
        ("problem", found.problem or ""),
        ("cron", f"{found.cron} ({found.timezone})"),
        ("next", local_time(found.next_due_at)),
        ("paused", local_time(found.paused_at)),
        ("overlap", found.overlap),
        ("catch-up", found.catch_up),
        ("source", places.shown_source(spec.source)),
        ("model", spec.model),
        ("task", str(spec.task or "")),
        ("params", _json(spec.params)),
        ("sink", places.shown_sink(spec.sink)),
        ("bad rows", "end the run" if spec.on_bad == "stop" else "are left out"),
        ("priority", str(spec.priority)),
        ("callback", (spec.callback_url or "").partition("?")[0]),  # a query may hold a token
        ("metadata", _json(spec.metadata)),
        ("report", shown(spec.report or "")),
        ("thresholds", _json(spec.thresholds.model_dump(exclude_none=True))),
        ("added", local_time(found.created_at)),
    ]
    emit_pairs((name, value) for name, value in facts if value)
    if found.last is not None:
        emit("")
        emit_pairs(run_facts(found.last))


@app.command()
def history(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    json: options.Json = False,
) -> None:
    """The runs of a schedule, the one that was due last first."""
    with session_of(context).open_client() as client:
        found = client.schedules.history(name, limit)
    if json:
        emit_json([places.masked(one.model_dump(mode="json")) for one in found])
    elif found:
        emit_table(RUNS, [run_row(one) for one in found], right=RUNS[2:9], drop=DROP)
        if len(found) == limit:
            say(f"the newest {limit:,}; --limit shows more")
    else:
        say(f"schedule {name} has no runs yet")


@app.command()
def pause(context: typer.Context, name: Name) -> None:
    """Begin no more runs; what is open goes on."""
    with session_of(context).open_client() as client:
        client.schedules.pause(name)
    say(f"schedule {name} is paused; `batchmill schedules resume {name}` takes it up again")


@app.command()
def resume(context: typer.Context, name: Name) -> None:
    """Begin runs again, from the next time on that it is due."""
    with session_of(context).open_client() as client:
        found = client.schedules.resume(name)
    say(f"schedule {name} is due next {local_time(found.next_due_at)}")


@app.command("run-now")
def run_now(context: typer.Context, name: Name, json: options.Json = False) -> None:
    """A run that is due at once; it obeys the schedule's overlap."""
    with session_of(context).open_client() as client:
        made = client.schedules.run_now(name)
    if json:
        emit_json(places.masked(made.model_dump(mode="json")))
    else:
        emit(str(made.id))
    if made.state is RunState.SKIPPED:
        warn(f"it is skipped: {made.error_message}")
    elif not json:
        say(f"a runner carries it out; `batchmill schedules show {name}` says how far it is")


@app.command()
def remove(context: typer.Context, name: Name) -> None:
    """Remove a schedule and its history; an open run is cancelled, what was written stays."""
    with session_of(context).open_client() as client:
        client.schedules.remove(name)
    say(f"schedule {name} is removed")


def _document(found: "ScheduleInfo") -> Any:
    return places.masked(found.model_dump(mode="json"))


def _schedule_row(found: "ScheduleInfo") -> tuple[str | Text, ...]:
    if found.paused_at is not None:
        state = Text("paused", style="magenta")
    elif found.problem is not None:
        state = Text("no model", style="red")
    else:
        state = Text("active", style="green")
    last = found.last
    return (
        found.name,
        state,
        found.cron,
        found.timezone,
        found.spec.model,
        local_time(found.next_due_at),
        "" if last is None else Text.assemble(state_of(last), f" {local_time(last.due_at)}"),
    )


def _json(value: Any) -> str:
    return shown(json_library.dumps(value, ensure_ascii=False)) if value else ""
