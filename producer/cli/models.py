"""`batchmill models`: the register of models."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from contracts.names import DEFAULT_POOL, Quantization, Task
from producer.cli.completion import model_references
from producer.cli.options import Json, QuantizationName
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, err, say
from producer.cli.session import session_of
from producer.summary import NONE, byte_size, rate_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contracts.models import ModelSpec
    from storage.overview import Measurement

app = typer.Typer(help="Models: register, list, show, remove, compute afresh.", no_args_is_help=True)

Reference: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="`name`, for its newest version, or `name@version`.", autocompletion=model_references
    ),
]


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it: letters, digits, '.', '-' and '_'.")],
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a .gguf file, an id on the hub (org/name, org/name:file.gguf), "
            "mypackage:thing for an engine of your own, or fake:."
        ),
    ],
    task: Annotated[str, typer.Option(help="What it computes.")] = Task.EMBED.value,
    quantization: QuantizationName = Quantization.NONE,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a model on the hub.")] = None,
    pool: Annotated[str, typer.Option(help="The workers that serve it.")] = DEFAULT_POOL,
    json: Json = False,
) -> None:
    """Register a model: its files are examined and copied into the artifact store."""
    with session_of(context).open_client() as client, err.status(f"registering {name}"):
        spec = client.models.add(name, source, task=task, quantization=quantization, revision=revision, pool=pool)
    if json:
        emit_json(_document(spec))
    else:
        emit(spec.reference)


@app.command("list")
def list_models(context: typer.Context, json: Json = False) -> None:
    """Every registered model."""
    with session_of(context).open_client() as client:
        found = client.models.list()
    if json:
        emit_json([_document(spec) for spec in found])
    elif found:
        rows = [
            (s.reference, str(s.task), str(s.quantization), s.pool, byte_size(s.memory_bytes), str(s.epoch), _source(s))
            for s in found
        ]
        headers = ("MODEL", "TASK", "QUANTIZATION", "POOL", "MEMORY", "EPOCH", "SOURCE")
        emit_table(headers, rows, right=("MEMORY", "EPOCH"), drop=("EPOCH", "POOL"))
    else:
        say("no models yet: batchmill models add NAME SOURCE")


@app.command()
def show(context: typer.Context, reference: Reference, json: Json = False) -> None:
    """What is known of a model, and what each of its versions takes and does; `name@version` shows that one alone."""
    with session_of(context).open_client() as client:
        found, measured = client.models.describe(reference)
    versions = [(spec, [one for one in measured if one.model_id == spec.id]) for spec in found]
    spec = next((one for one in reversed(found) if not one.rejected), found[-1])  # what the bare name stands for
    if json:
        described = [{**_document(one), "measured": [_measured(m) for m in several]} for one, several in versions]
        emit_json({**_document(spec), "versions": described})
        return
    facts = [
        ("model", spec.reference),
        ("source", spec.source),
        ("parent", spec.parent or ""),
        ("recipe", _recipe(spec)),
        (
            "rejected",
            "it missed what was asked of it: only its name with its version names it" if spec.rejected else "",
        ),
        ("revision", spec.revision or ""),
        ("task", str(spec.task)),
        ("quantization", str(spec.quantization)),
        ("engine", spec.engine),
        ("pool", spec.pool),
        ("epoch", str(spec.epoch)),
        ("digest", spec.digest),
        ("files", f"{len(spec.files)}, {byte_size(_disk(spec))} on disk" if spec.files else ""),
        ("memory", f"{byte_size(spec.memory_bytes)} by estimate"),
    ]
    emit_pairs((name, value) for name, value in facts if value)
    emit("")
    rows = [row for one, several in versions for row in _version_rows(one, several)]
    emit_table(_VERSION, rows, right=_VERSION[2:5] + _VERSION[6:], drop=("ESTIMATE", "LOAD"))
    if not measured:
        say("nothing is measured yet: the first job of a version measures it on the device of its worker")


@app.command()
def remove(context: typer.Context, reference: Reference) -> None:
    """Take a model out of the register; jobs that hold it finish, and its results stay readable."""
    with session_of(context).open_client() as client:
        spec = client.models.remove(reference)
    say(f"removed {spec.reference}")


@app.command()
def invalidate(context: typer.Context, reference: Reference) -> None:
    """Compute afresh from now on: results of earlier epochs are not served to new jobs."""
    with session_of(context).open_client() as client:
        spec = client.models.invalidate(reference)
    say(f"{spec.reference} begins epoch {spec.epoch}: jobs submitted from now on compute everything afresh")


_VERSION = ("MODEL", "QUANTIZATION", "DISK", "ESTIMATE", "MEMORY", "DEVICE", "BUDGET", "TOKENS/S", "LOAD")


def _version_rows(spec: "ModelSpec", measured: "Sequence[Measurement]") -> list[tuple[str, ...]]:
    """One for each kind of device on which it was measured."""
    known = (spec.reference, str(spec.quantization), byte_size(_disk(spec)), byte_size(spec.memory_bytes))
    if not measured:
        return [(*known, NONE, NONE, NONE, NONE, NONE)]
    return [
        (
            *known,
            NONE if one.memory_bytes is None else byte_size(one.memory_bytes),
            one.device,
            f"{one.budget_tokens:,}",
            rate_text(one.tokens_per_second),
            seconds_text(one.load_seconds),
        )
        for one in measured
    ]


def _measured(measured: "Measurement") -> dict[str, Any]:
    return {name: value for name, value in vars(measured).items() if name != "model_id"}


def _source(spec: "ModelSpec") -> str:
    return f"{spec.source} (rejected)" if spec.rejected else spec.source


def _recipe(spec: "ModelSpec") -> str:
    """What made a model of its parent, in words."""
    if spec.recipe is None:
        return ""
    from contracts.recipes import titles

    return "; ".join(titles(spec.recipe))


def _disk(spec: "ModelSpec") -> int:
    return sum(file.size for file in spec.files)


def _document(spec: "ModelSpec") -> dict[str, Any]:
    return {"reference": spec.reference, **spec.model_dump(mode="json"), "disk_bytes": _disk(spec)}
