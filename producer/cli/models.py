"""`batchmill models`: the register of models."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from contracts.names import DEFAULT_POOL, Quantization, Task
from producer.cli.options import Json, QuantizationName
from producer.cli.output import byte_size, emit, emit_json, emit_pairs, emit_table, err, say
from producer.cli.session import session_of

if TYPE_CHECKING:
    from contracts.models import ModelSpec

app = typer.Typer(help="Models: register, list, show, remove, compute afresh.", no_args_is_help=True)

Reference: TypeAlias = Annotated[
    str, typer.Argument(metavar="NAME", help="`name`, for its newest version, or `name@version`.")
]


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it: letters, digits, '.', '-' and '_'.")],
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, an id on the hub (org/name), or fake:.")],
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
        return
    rows = [
        (s.reference, str(s.task), str(s.quantization), s.pool, byte_size(s.memory_bytes), str(s.epoch), s.source)
        for s in found
    ]
    headers = ("MODEL", "TASK", "QUANTIZATION", "POOL", "MEMORY", "EPOCH", "SOURCE")
    emit_table(headers, rows, right=("MEMORY", "EPOCH"))


@app.command()
def show(context: typer.Context, reference: Reference, json: Json = False) -> None:
    """Everything that is known of a model."""
    with session_of(context).open_client() as client:
        spec = client.models.get(reference)
    if json:
        emit_json(_document(spec))
        return
    facts = [
        ("model", spec.reference),
        ("source", spec.source),
        ("revision", spec.revision or ""),
        ("task", str(spec.task)),
        ("quantization", str(spec.quantization)),
        ("engine", spec.engine),
        ("pool", spec.pool),
        ("epoch", str(spec.epoch)),
        ("memory", f"{byte_size(spec.memory_bytes)} (estimate)"),
        ("digest", spec.digest),
        ("files", f"{len(spec.files)}, {byte_size(sum(file.size for file in spec.files))}" if spec.files else ""),
    ]
    emit_pairs((name, value) for name, value in facts if value)


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


def _document(spec: "ModelSpec") -> dict[str, Any]:
    return {"reference": spec.reference, **spec.model_dump(mode="json")}
