"""`batchmill compress`: a recipe becomes a job, and the job a model with a report."""

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from typer.core import TyperGroup

from producer.cli.completion import job_ids, model_references
from producer.cli.options import CallbackUrl, ExpiresIn, Json, parse_pairs, parse_time
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, err, say, show_pairs, warn
from producer.cli.session import session_of
from producer.cli.watch import summary_of, wait_for
from producer.summary import NONE, byte_size, job_document

if TYPE_CHECKING:
    from contracts.compression import CompressionInfo, Report
    from producer.compression.job import CompressionJob
    from producer.compression.plan import Preflight


class _RunByDefault(TyperGroup):
    """`compress MODEL RECIPE` is `compress run MODEL RECIPE`; a model called `report` needs the long form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Make a model smaller: `batchmill compress MODEL RECIPE.yaml`, then read the report.",
    no_args_is_help=True,
)

ModelArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="`name`, for its newest version, or `name@version`.", autocompletion=model_references
    ),
]
RecipeArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A YAML file: a list of steps, or a mapping with `steps` and what the options say."
    ),
]


@app.command()
def run(
    context: typer.Context,
    model: ModelArgument,
    recipe: RecipeArgument,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The result becomes the next version of it; MODEL-small by default."),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What it is measured on: a .jsonl, .csv, .parquet, .arrow or .txt file (.gz too; a pattern, a folder, "
            "a URL), or job:ID for its inputs.",
        ),
    ] = None,
    accept: Annotated[
        str | None,
        typer.Option(metavar="WHAT=NUMBER,…", help="What it must reach: fidelity=0.98,size_ratio=0.5,speedup=1.0."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "--watch", help="Follow it until it is done.")] = False,
    expires_in: ExpiresIn = None,
    callback_url: CallbackUrl = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key and content give the same job.")
    ] = None,
    json: Json = False,
) -> None:
    """Submit a recipe as a job and print the job's id; `run` may be left out."""
    from producer.compression.recipe_file import read_recipe

    session = session_of(context)
    given = {
        "name": name,
        "evaluate": evaluate,
        "accept": None if accept is None else parse_pairs(accept.split(","), "--accept"),
        "expires_in": parse_time(expires_in, "--expires-in"),
        "callback_url": callback_url,
        "idempotency_key": idempotency_key,
    }
    found = read_recipe(recipe)
    asked = {**found.options, **{option: value for option, value in given.items() if value is not None}}
    with session.open_client() as client:
        preflight = client.preflight(model, found.steps, evaluated=asked.get("evaluate") is not None)
        _show_needs(preflight)
        with err.status("reading data, storing the job"):
            job = client.compress(model, found.steps, **asked)
        if not json:
            emit(str(job.id))
        if wait:
            wait_for(job, session)
            show_pairs(summary_of(job))
        if json:
            emit_json(_document(job))


@app.command()
def check(context: typer.Context, model: ModelArgument, recipe: RecipeArgument, json: Json = False) -> None:
    """Check a recipe against a model, and show what its steps need of memory and disk; data is not read."""
    from producer.compression.recipe_file import read_recipe

    found = read_recipe(recipe)
    with session_of(context).open_client() as client:
        preflight = client.preflight(model, found.steps, evaluated=found.options.get("evaluate") is not None)
    if json:
        emit_json(
            {
                "needs": [vars(need) for need in preflight.needs],
                "workers": preflight.workers,
                "memory_bytes": preflight.memory_bytes,
                "disk_bytes": preflight.disk_bytes,
            }
        )
    else:
        rows = [(need.title, byte_size(need.memory_bytes), byte_size(need.disk_bytes)) for need in preflight.needs]
        emit_table(_NEEDS, rows, right=_NEEDS[1:])
        _say_room(preflight)


@app.command()
def report(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Its id, or its link.", autocompletion=job_ids)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it: a .html page with plots, or .json.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    json: Json = False,
) -> None:
    """What a compression came to: sizes, fidelity and speed before and after, and what is to be said plainly."""
    with session_of(context).open_client() as client:
        job = client.compression(job_id)
        found = job.report()
        if open_page and (output is None or output.suffix.lower() != ".html"):
            page = job.save_report(Path(tempfile.mkdtemp(prefix="batchmill-")) / f"report-{job.id}.html")
        if output is not None:
            page = job.save_report(output)
            say(f"the report is in {output}")
        if json:
            emit_json(found.model_dump(mode="json"))
        elif output is None:
            _show_report(found)
    if open_page and not webbrowser.open(page.resolve().as_uri()):
        say(f"no browser could be started; the page is {page}")


_NEEDS = ("STEP", "MEMORY", "DISK")
_STOPPED = {"finished": "all epochs done", "early": "stopped early", "diverged": "diverged"}
_STAGES = ("AFTER", "DISK", "FIDELITY", "LOSS", "P50", "INPUTS/S", "MEMORY", "PARAMETERS")


def _show_needs(preflight: "Preflight") -> None:
    """A line on stderr: what the recipe needs at most."""
    from contracts.preflight import all_disk, most_memory  # here and below: `--help` asks for none of it

    most = most_memory(preflight.needs)
    say(
        f"needs at most {byte_size(most.memory_bytes)} of memory ({most.title}) and writes up to "
        f"{byte_size(all_disk(preflight.needs))}"
    )
    _say_room(preflight)


def _say_room(preflight: "Preflight") -> None:
    if preflight.memory_bytes is None:
        warn("no worker compresses now; start one with BATCHMILL_POOL=compression batchmill worker")
    else:
        many = "1 worker compresses" if preflight.workers == 1 else f"{preflight.workers} workers compress"
        disk = "" if preflight.disk_bytes is None else f" and {byte_size(preflight.disk_bytes)} of free disk"
        say(f"{many}, with up to {byte_size(preflight.memory_bytes)} of memory{disk}")


def _show_report(found: "Report") -> None:
    facts = [
        ("model", found.model),
        ("parent", found.parent),
        ("verdict", found.verdict),
        *(
            (f"asked: {one.name}", f"{one.asked:g}, found {one.found:.4g}: {'met' if one.met else 'missed'}")
            for one in found.criteria
        ),
        ("rows", f"{found.rows:,}"),
    ]
    emit_pairs(facts)
    emit("")
    rows = [
        (
            stage.title,
            byte_size(stage.size_bytes),
            _number(stage.fidelity.get("fidelity"), ".4f"),
            _number(stage.loss, ".4f"),
            NONE if stage.measurement is None else f"{1000 * stage.measurement.latency_p50:.1f} ms",
            NONE if stage.measurement is None else f"{stage.measurement.throughput:,.0f}",
            NONE if stage.measurement is None else byte_size(stage.measurement.memory_bytes),
            NONE if stage.measurement is None else f"{stage.measurement.parameters:,}",
        )
        for stage in found.stages
    ]
    emit_table(_STAGES, rows, right=_STAGES[1:], drop=("PARAMETERS", "LOSS", "MEMORY"))
    for note in [*found.notes, *_of_steps(found)]:
        emit(f"- {note}")


def _of_steps(found: "Report") -> list[str]:
    """What each step said, and how its training went."""
    from contracts.recipes import title

    lines = []
    for number, (step, result) in enumerate(zip(found.recipe, found.results, strict=False), 1):
        said = list(result.notes)
        if result.training is not None and (points := result.training.points):
            said.insert(
                0,
                f"held-out loss {points[0].held_out_loss:.4f} at update {points[0].update}, "
                f"{points[-1].held_out_loss:.4f} at update {points[-1].update}; {_STOPPED[result.training.stopped]}, "
                f"and update {result.training.kept_update} kept",
            )
        lines += [f"step {number} ({title(step)}): {one}" for one in said]
    return lines


def _number(value: float | None, how: str) -> str:
    return NONE if value is None else format(value, how)


def _document(job: "CompressionJob") -> dict[str, Any]:
    """A compression as JSON values: the job, and what came of it."""
    found: CompressionInfo = job.compression
    return {**job_document(job.info), "compression": found.model_dump(mode="json", exclude={"job", "report"})}
