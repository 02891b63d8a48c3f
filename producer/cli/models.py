"""`batchmill models`: the register of models."""

import time
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
    from datetime import datetime

    from contracts.models import ModelSpec
    from producer.client import Client
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
    fidelity: Annotated[
        float, typer.Option(help="For `auto`: the least mean cosine to float32 that may be traded for speed or memory.")
    ] = 1.0,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a model on the hub.")] = None,
    pool: Annotated[str, typer.Option(help="The workers that serve it.")] = DEFAULT_POOL,
    json: Json = False,
) -> None:
    """Register a model: its files are examined and copied into the artifact store."""
    with session_of(context).open_client() as client, err.status(f"registering {name}"):
        spec = client.models.add(
            name, source, task=task, quantization=quantization, fidelity=fidelity, revision=revision, pool=pool
        )
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
        ("fidelity", f"{spec.fidelity:g} at least" if spec.quantization is Quantization.AUTO else ""),
        ("engine", spec.engine),
        ("pool", spec.pool),
        ("epoch", str(spec.epoch)),
        ("digest", spec.digest),
        ("files", f"{len(spec.files)}, {byte_size(_disk(spec))} on disk" if spec.files else ""),
        ("memory", f"{byte_size(spec.memory_bytes)} by estimate"),
    ]
    emit_pairs((name, value) for name, value in facts if value)
    emit("")
    _show_versions(versions)
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


@app.command()
def measure(
    context: typer.Context,
    reference: Reference,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the workers; 0 asks them and returns.", min=0)] = 600,
) -> None:
    """Have the workers find anew how they compute a model best: arithmetic, lanes, tokens of a micro-batch."""
    with session_of(context).open_client() as client:
        since = client.models.measure(reference)
        [spec] = client.models.describe(client.models.get(reference).reference)[0]
        say(f"workers of pool {spec.pool} are asked to measure {spec.reference}")
        with err.status("measuring"):
            found = _await_measurements(client, spec, since, wait)
    if found:
        _show_versions([(spec, found)])
    elif wait:
        say(f"nobody has measured it within {wait:g} s: `batchmill top` shows the workers of pool {spec.pool}")
        raise typer.Exit(1)


def _await_measurements(client: "Client", spec: "ModelSpec", since: "datetime", seconds: float) -> "list[Measurement]":
    """Measurements since then, once each kind of worker that the pool has now gave one, or time is over."""
    deadline = time.monotonic() + seconds
    while True:
        found = [one for one in client.models.describe(spec.reference)[1] if one.measured_at >= since]
        kinds = {worker.device for worker in client.overview().workers if worker.pool == spec.pool}
        # A model in parts is measured under a longer name.
        waiting = [kind for kind in kinds if not any(one.device.startswith(kind) for one in found)]
        if (found and not waiting) or time.monotonic() >= deadline:
            return found
        time.sleep(min(1.0, seconds))


_VERSION = ("MODEL", "QUANTIZATION", "DISK", "ESTIMATE", "MEMORY", "DEVICE", "COMPUTED", "BUDGET", "TOKENS/S", "LOAD")


def _version_rows(spec: "ModelSpec", measured: "Sequence[Measurement]") -> list[tuple[str, ...]]:
    """One for each kind of device on which it was measured."""
    known = (spec.reference, str(spec.quantization), byte_size(_disk(spec)), byte_size(spec.memory_bytes))
    if not measured:
        return [(*known, NONE, NONE, NONE, NONE, NONE, NONE)]
    return [
        (
            *known,
            NONE if one.memory_bytes is None else byte_size(one.memory_bytes),
            one.device,
            _computed(spec, one),
            f"{one.budget_tokens:,}",
            rate_text(one.tokens_per_second),
            seconds_text(one.load_seconds),
        )
        for one in measured
    ]


def _show_versions(versions: "Sequence[tuple[ModelSpec, Sequence[Measurement]]]") -> None:
    """A table of what each kind of device does with each version, and a line for each with all that was tried."""
    rows = [row for spec, several in versions for row in _version_rows(spec, several)]
    emit_table(_VERSION, rows, right=_VERSION[2:5] + _VERSION[7:], drop=("ESTIMATE", "LOAD", "DISK"))
    for spec, several in versions:
        for one in several:
            if one.rates:
                emit(f"\n{spec.reference} on {one.device}: {_tried(one)}")


def _computed(spec: "ModelSpec", measured: "Measurement") -> str:
    """The arithmetic with lanes × threads, and how the weights are held where the model does not say."""
    held = "" if measured.quantization == spec.quantization else f"{measured.quantization} in "
    return f"{held}{measured.dtype}, {measured.lanes} × {measured.threads}"


def _tried(measured: "Measurement") -> str:
    """All that was tried, with the best speed of each; what was tried in two sizes of a pass stands once."""
    best: dict[str, float] = {}
    for rate in measured.rates:
        name = f"{rate['quantization']} in {rate['dtype']}, {rate['lanes']} × {rate['threads']}"
        best[name] = max(best.get(name, 0.0), rate["tokens_per_second"])
    return "; ".join(f"{name}: {rate_text(speed)} tokens/s" for name, speed in best.items())


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
