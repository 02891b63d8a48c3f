"""`batchmill run`: rows of a source become results in a sink."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import UnavailableError
from contracts.names import Quantization
from contracts.states import Priority
from contracts.urls import shown
from producer.cli import options, places
from producer.cli.output import BadLines, emit_json, err, say, show_pairs, warn
from producer.cli.session import Session, session_of
from producer.summary import job_document, job_summary

if TYPE_CHECKING:
    from contracts.runs import RunInfo
    from producer.client import Client


def run(
    context: typer.Context,
    source: places.SourceUrl = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="A registered model: `name`, or `name@version`."),
    ] = None,
    output: places.SinkUrl = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run that was cut; nothing else is given then.")
    ] = None,
    model_source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="FOLDER", help="Register the model first: a folder, an id on the hub, or fake:."
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="How workers hold its weights; goes with --source.")
    ] = None,
    task: options.TaskName = None,
    params: options.ParamsJson = None,
    param: options.ParamList = None,
    priority: options.PriorityClass = Priority.NORMAL,
    expires_in: options.ExpiresIn = None,
    metadata: options.Metadata = None,
    callback_url: options.CallbackUrl = None,
    progress_at: options.ProgressAt = None,
    query: places.Query = None,
    id_column: options.IdColumn = None,
    input_column: options.InputColumn = None,
    template: places.Template = None,
    skip_bad: options.SkipBad = False,
    table: places.Table = None,
    openai: places.OpenAI = False,
    report: places.Report = None,
    json: options.Json = False,
) -> None:
    """Score the rows of a source into a sink: read, compute, write. Ctrl-C leaves a run that --resume goes on with."""
    session = session_of(context)
    if resume is not None:
        _refuse_more(context)
        with session.open_client() as client:
            with _Telling(session) as telling:
                done = client.resume(resume, progress=telling.watcher)
            _show(client, done, json=json)
        return
    if source is None:
        raise typer.BadParameter("name a file, a folder or a URL", param_hint="SOURCE")
    if model is None:
        raise typer.BadParameter("name a registered model", param_hint="--model")
    if output is None:
        raise typer.BadParameter("name a file, a folder or a URL", param_hint="--output")
    if quantization and model_source is None:
        raise typer.BadParameter("it goes with --source; a registered model has its own", param_hint="--quantization")
    parsed = {**options.parse_object(params, "--params"), **options.parse_pairs(param, "--param")}
    seconds = options.parse_time(expires_in, "--expires-in")
    percentages = options.parse_percentages(progress_at, "--progress-at")
    rows = places.source_of(source, query, id_column, input_column, template, openai=openai)
    results = places.sink_of(output, table, openai=openai)
    # What is wrong with the files is said before anything is started.
    places.look_at(rows, results)
    with session.open_client() as client:
        if model_source is not None:
            with err.status(f"registering {model}"):
                spec = client.models.add(model, model_source, quantization=quantization or Quantization.NONE)
            say(f"model {spec.reference} ({spec.quantization}) is registered")
        with _Telling(session) as telling:
            done = client.run(
                rows,
                model,
                results,
                params=parsed,
                task=task,
                priority=priority,
                metadata=options.parse_pairs(metadata, "--metadata"),
                on_bad="skip" if skip_bad else "stop",
                report=report,
                callback_url=callback_url,
                expires_in=seconds,
                progress_at=percentages,
                progress=telling.watcher,
            )
        _show(client, done, json=json)


def _refuse_more(context: typer.Context) -> None:
    """See that nothing is given that a run which was begun has as it has."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in ("resume", "json") and source is not None and source.name == "COMMANDLINE":
            said = parameter.opts[0] if parameter.param_type_name == "option" else name.upper()
            raise typer.BadParameter(f"the run knows what it is to do: leave out {said}", param_hint="--resume")


class _Telling:
    """Says which run it is, what is left out of it, and how to go on with it."""

    def __init__(self, session: Session) -> None:
        from producer.runs.showing import choose_watcher

        self._session = session
        self._bad = BadLines()
        self._go_on = ""
        self.watcher = choose_watcher(begun=self._begun, left_out=self._bad, console=err)

    def _begun(self, run: "RunInfo") -> None:
        self._go_on = f"go on with: batchmill run --resume {run.id}"
        self._session.farewell = f"interrupted; {self._go_on}"
        say(f"run {run.id}")

    def __enter__(self) -> "_Telling":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bad.close()
        if kind is not None and issubclass(kind, UnavailableError) and self._go_on:
            say(self._go_on)


def _show(client: "Client", run: "RunInfo", *, json: bool) -> None:
    """What the run came to."""
    facts: list[tuple[str, str]] = [("results", places.shown_sink(run.spec.sink))]
    if run.report is not None:
        facts.append(("report", shown(run.report)))
    document: dict[str, Any] = {"run": places.masked(run.model_dump(mode="json"))}
    if run.job_id is not None:
        job = client.job(run.job_id)
        facts = [*job_summary(job.info), *facts]
        document = {**job_document(job.info), **document}
        if job.counts.failed:
            warn(f"{job.counts.failed:,} inputs failed: the results say why")
    if run.error_message is not None:
        warn(shown(run.error_message))
    show_pairs(facts)
    if json:
        emit_json(document)
