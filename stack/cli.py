"""The command line's way to the servers: `batchmill up`, `down`, `worker`, `migrate` and `doctor`."""

import logging
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from contracts.errors import ConfigurationError, StackError
from producer.cli.app import FAILED, app, execute
from producer.cli.options import Json
from producer.cli.output import emit, emit_json, emit_pairs, emit_table, err, say, warn
from producer.cli.session import Session
from stack import cli_roles
from stack.known import database_url

if TYPE_CHECKING:
    from contracts.settings import Settings
    from producer.client import Client
    from stack.processes import Program
    from stack.state import StackAddresses

SERVERS = "Servers"
END_IT = "`batchmill down` ends it"


def main() -> int:
    """The exit code of the command line."""
    return execute(Session(open_client, database_url))


def open_client() -> "Client":
    """A client of the configured servers, or of the embedded stack, which is started when it does not run.

    Raises:
        ConfigurationError: A setting is wrong, or the database's schema is at another revision.
        DatabaseUnavailable: Postgres does not answer.
        StackError: The embedded stack cannot be started.
    """
    from producer.client import Client

    settings = _settings()
    if not settings.embedded:
        return Client()
    addresses = _started(settings)
    return Client(database_url=addresses.database_url, broker_url=addresses.broker_url)


@app.command(rich_help_panel=SERVERS)
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and return.")] = False,
    json: Json = False,
) -> None:
    """Run the embedded servers, two workers, beat, a runner, the deliverer of webhooks and Flower, until Ctrl-C."""
    from stack import embedded
    from stack.layout import Layout

    settings = _settings()
    if not settings.embedded:
        raise ConfigurationError("BATCHMILL_DATABASE_URL is set: those servers are not this stack's to run")
    if detach or embedded.status(settings).running:
        addresses = _started(settings)
        children = embedded.status(settings).children
        _show_addresses(settings, addresses, (child.address for child in children), json=json)
        if not detach:
            say(f"it was running already, under {Layout.of(settings.home).home}; {END_IT}")
        return
    _run_stack(settings, json=json)


@app.command(rich_help_panel=SERVERS)
def down() -> None:
    """End the embedded servers and what runs on them; what they hold stays on the disk."""
    from stack import embedded

    settings = _settings()
    before = embedded.status(settings)
    with err.status(f"ending what runs under {before.home}"):
        ended = embedded.down(settings)
    if not ended:
        say(f"nothing runs under {before.home}")
        return
    names = ", ".join(child.name for child in reversed(before.children)) or "what a killed supervisor left"
    say(f"ended {names} under {before.home}")


@app.command(rich_help_panel=SERVERS)
def worker(
    pool: Annotated[str | None, typer.Option(help="The pool to serve.  [default: default]")] = None,
    slots: Annotated[int | None, typer.Option(min=2, help="Shards to hold at once.  [default: 4]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.  [default: the first GPU, or cpu]")] = None,
) -> None:
    """Run a worker in this process, on the configured servers or those of the running embedded stack."""
    settings = _settings(pool=pool, slots=slots, device=device)
    if settings.embedded:
        from stack import embedded

        found = embedded.status(settings)
        if not (found.ready and found.addresses):
            raise StackError(
                f"no stack runs under {found.home}: start it with `batchmill up --detach`, or set "
                "BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL"
            )
        settings = settings.model_copy(update=found.addresses._asdict())
    from worker.__main__ import run

    try:
        code = run(settings)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'batchmill[worker]'") from error
    if code:
        raise typer.Exit(code)


@app.command(rich_help_panel=SERVERS)
def beat() -> None:
    """Send ticks to the workers of the configured servers; one is enough, and more are harmless."""
    settings = _settings()
    if settings.embedded:
        raise ConfigurationError("the embedded stack has a beat of its own: this one is for servers that two URLs name")
    from worker.beat import run

    run(settings)


@app.command(rich_help_panel=SERVERS)
def deliver() -> None:
    """Send webhooks of the configured servers' jobs; any number of these share the work."""
    settings = _settings()
    if settings.embedded:
        raise ConfigurationError("the embedded stack delivers by itself: this is for servers that two URLs name")
    from worker.webhooks.__main__ import run

    run(settings)


@app.command(rich_help_panel=SERVERS)
def runner() -> None:
    """Carry out what schedules have due, on the configured servers; any number of these share the work."""
    settings = _settings()
    if settings.embedded:
        raise ConfigurationError("the embedded stack has a runner: this is for servers that two URLs name")
    from producer.runs.__main__ import run

    run(settings)


@app.command(rich_help_panel=SERVERS)
def flower(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 5555,
) -> None:
    """Show what the workers of the configured servers do, at a page that asks for BATCHMILL_FLOWER_PASSWORD."""
    settings = _settings()
    if settings.embedded:
        raise ConfigurationError("the embedded stack serves Flower by itself: `batchmill up` shows where")
    from stack.flower import NOT_INSTALLED

    if find_spec("flower") is None:
        raise ConfigurationError(NOT_INSTALLED)
    from stack.flower_server import listen, serve

    serve(settings, listen(host, port))


@app.command(rich_help_panel=SERVERS)
def migrate() -> None:
    """Bring the database's schema up to date and print its revision."""
    from sqlalchemy.exc import DBAPIError

    from storage import schema

    settings = _settings()
    url = str(settings.database_url) if not settings.embedded else _started(settings).database_url
    try:
        schema.upgrade(url)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ConfigurationError(f"the schema was left as it is: {reason}; see `batchmill doctor`") from error
    emit(str(schema.HEAD))


app.add_typer(cli_roles.app, name="roles", rich_help_panel=SERVERS)


@app.command(rich_help_panel=SERVERS)
def doctor(json: Json = False) -> None:
    """Say what is missing or misconfigured and how to mend it; exit code 1 when something is broken."""
    from stack.doctor import examine
    from stack.findings import Verdict

    with err.status("looking around"):
        findings = examine()
    if json:
        emit_json([vars(finding) for finding in findings])
    else:
        colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.BROKEN: "bold red"}
        rows = [(f.check, Text(f.verdict, style=colours.get(f.verdict, "dim")), f.detail, f.remedy) for f in findings]
        emit_table(("CHECK", "VERDICT", "DETAIL", "REMEDY"), rows)
    if any(finding.verdict is Verdict.BROKEN for finding in findings):
        raise typer.Exit(FAILED)


def _settings(**overrides: object) -> "Settings":
    from contracts.settings import load_settings  # here: `--help` asks for none, and pydantic takes a while to import

    return load_settings(**overrides)


def _started(settings: "Settings") -> "StackAddresses":
    """Where the embedded stack listens; says so when it had to be started."""
    from stack import embedded

    if embedded.status(settings).ready:
        return embedded.ensure(settings)
    with err.status("starting the embedded servers"):
        addresses = embedded.ensure(settings)
    say(f"started the embedded servers under {settings.home}; {END_IT}")
    if find_spec("torch") is None:
        warn("torch is not installed, so no worker comes up: pip install 'batchmill[worker]'")
    return addresses


def _run_stack(settings: "Settings", *, json: bool) -> None:
    from contracts.logs import formatter
    from stack.__main__ import upgrade_schema
    from stack.layout import Layout
    from stack.programs import programs_of
    from stack.supervisor import supervise

    layout = Layout.of(settings.home).prepare()
    log = logging.getLogger("stack")
    log.setLevel(logging.INFO)
    kept, shown = logging.FileHandler(layout.supervisor_log), logging.StreamHandler()
    kept.setFormatter(formatter(settings.log_format))
    shown.addFilter(lambda record: not record.getMessage().startswith("ready"))  # said in `programs` already
    log.addHandler(kept)
    log.addHandler(shown)

    def programs(addresses: "StackAddresses") -> Sequence["Program"]:
        found = programs_of(settings, addresses)
        _show_addresses(settings, addresses, (program.address for program in found), json=json)
        say(f"logs are under {layout.logs}; Ctrl-C ends everything")
        return found

    supervise(layout, programs, upgrade_schema, detach=False)


def _show_addresses(
    settings: "Settings", addresses: "StackAddresses", pages: Iterable[str | None], *, json: bool
) -> None:
    """Where everything is, and how to get in; of the programs Flower alone has a page."""
    from stack import flower

    page = next(filter(None, pages), None)
    credentials = {"flower_url": page, "flower_user": flower.USER, "flower_password": flower.password(settings)}
    if json:
        emit_json({**addresses._asdict(), **(credentials if page else {})})
    else:
        rows = [("database", addresses.database_url), ("broker", addresses.broker_url)]
        if page:
            rows.append(("flower", f"{page}  user {flower.USER}, password {credentials['flower_password']}"))
        emit_pairs(rows)
    if page is None and settings.flower_port != 0:
        warn(flower.why_not(settings))
    sys.stdout.flush()  # whoever reads a pipe waits for this
