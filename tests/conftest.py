"""Real servers for every test that asks: Postgres and Valkey from their wheels, started once a session."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import text

from benchmarks import heads
from contracts.names import Task
from producer import Client
from stack.servers import servers
from stack.state import StackAddresses
from storage import schema
from storage.database import Database
from tests import tiny
from tests.models import MINILM, save_language_model, save_smollm2
from tests.rabbitmq_node import missing, rabbitmq

LONGEST = (
    "tests/docs/test_examples.py",
    "tests/acceptance/test_compression.py",
    "tests/integration/stack/test_cli_run.py",
    "tests/unit/worker/test_engine_conformance.py",
    "tests/unit/worker/compression/test_distillation_training.py",
    "tests/unit/worker/compression/evaluation/test_evaluating.py",
    "tests/unit/worker/compression/steps/test_export.py",
    "tests/unit/worker/compression/evaluation/test_measurement.py",
    "tests/integration/worker/test_compression.py",
)
"""Files that take long begin first, so that none is left for one process at the end."""
_names = count()
_AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A short path: sockets live below it."""
    folder = Path(tempfile.mkdtemp(prefix="bm-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def addresses(home: Path) -> Iterator[StackAddresses]:
    with servers(home / "servers") as found:
        yield found


@pytest.fixture(scope="session")
def make_database(addresses: StackAddresses) -> Callable[..., str]:
    """New databases: migrated ones are copies of one template."""
    server = addresses.database_url

    def create(name: str, template: str = "template1") -> str:
        with Database(server) as database:
            engine = database._engine.execution_options(**_AUTOCOMMIT)
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log"))
        return server.replace("/batchmill?", f"/{name}?")

    schema.upgrade(create("migrated"))

    def make(*, migrated: bool = True) -> str:
        return create(f"test_{next(_names)}", "migrated" if migrated else "template1")

    return make


MadeOnce: TypeAlias = Callable[[str, Callable[[Path], Path]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Folders that one of the processes that test side by side makes, in an empty folder, and the others find."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, build: Callable[[Path], Path]) -> Path:
        folder, done = shared / f"shared-{name}", shared / f"shared-{name}.done"
        with (shared / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                done.write_text(str(build(folder)))
        return Path(done.read_text())

    return make


@pytest.fixture(scope="session")
def real_classifier(made_once: MadeOnce) -> Path:
    """The folder of a classifier with five labels, trained for this session."""
    return made_once("real_classifier", heads.save_classifier)


@pytest.fixture(scope="session")
def real_reranker(made_once: MadeOnce) -> Path:
    """The folder of a cross-encoder, trained for this session."""
    return made_once("real_reranker", heads.save_reranker)


@pytest.fixture(scope="session")
def real_smollm2(made_once: MadeOnce) -> Path:
    """The folder of all of SmolLM2 in bfloat16: a GGUF file takes long to parse."""
    return made_once("real_smollm2", save_smollm2)


@pytest.fixture(scope="session")
def real_language_model(real_smollm2: Path, made_once: MadeOnce) -> Path:
    """The folder of a small model that speaks in tongues: the first layers of SmolLM2, with 256 positions."""
    return made_once(
        "real_language_model", lambda folder: save_language_model(real_smollm2, folder, layers=2, positions=256)
    )


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """MiniLM."""
    return MINILM


@pytest.fixture(scope="session")
def real_onnx_embedder(made_once: MadeOnce) -> Path:
    """MiniLM as an ONNX graph."""
    return made_once("real_onnx_embedder", lambda folder: _graphs().exported(MINILM, folder))


@pytest.fixture(scope="session")
def real_onnx_int8_embedder(real_onnx_embedder: Path, made_once: MadeOnce) -> Path:
    """The same in int8."""
    return made_once("real_onnx_int8_embedder", lambda folder: _graphs().quantized(real_onnx_embedder, folder))


@pytest.fixture(scope="session")
def real_onnx_classifier(real_classifier: Path, made_once: MadeOnce) -> Path:
    """The real classifier as an ONNX graph."""
    return made_once("real_onnx_classifier", lambda folder: _graphs().exported(real_classifier, folder, Task.CLASSIFY))


@pytest.fixture(scope="session")
def real_onnx_int8_classifier(real_onnx_classifier: Path, made_once: MadeOnce) -> Path:
    """The same in int8."""
    return made_once(
        "real_onnx_int8_classifier", lambda folder: _graphs().quantized(real_onnx_classifier, folder, Task.CLASSIFY)
    )


@pytest.fixture(scope="session")
def encoder(made_once: MadeOnce) -> Path:
    """A sentence encoder with MiniLM's tokenizer and as many layers, and with 64 dimensions."""
    return made_once("encoder", tiny.save_encoder)


@pytest.fixture(scope="session")
def classifier(made_once: MadeOnce) -> Path:
    """A classifier with five labels that has learned nothing."""
    return made_once("classifier", tiny.save_classifier)


@pytest.fixture(scope="session")
def reranker(made_once: MadeOnce) -> Path:
    """A cross-encoder that has learned nothing."""
    return made_once("reranker", tiny.save_reranker)


@pytest.fixture(scope="session")
def language_model(made_once: MadeOnce) -> Path:
    """A language model of 2,000 words that has learned nothing."""
    return made_once("language_model", tiny.save_language_model)


@pytest.fixture(scope="session")
def speaker(made_once: MadeOnce) -> Path:
    """The same as one GGUF file with 4 bits a weight."""
    return made_once("speaker", tiny.save_speaker)


@pytest.fixture(scope="session")
def onnx_embedder(encoder: Path, made_once: MadeOnce) -> Path:
    """The encoder as an ONNX graph."""
    return made_once("onnx_embedder", lambda folder: _graphs().exported(encoder, folder))


@pytest.fixture(scope="session")
def onnx_int8_embedder(onnx_embedder: Path, made_once: MadeOnce) -> Path:
    """The same in int8."""
    return made_once("onnx_int8_embedder", lambda folder: _graphs().quantized(onnx_embedder, folder))


@pytest.fixture(scope="session")
def onnx_classifier(classifier: Path, made_once: MadeOnce) -> Path:
    """The classifier as an ONNX graph."""
    return made_once("onnx_classifier", lambda f: _graphs().exported(classifier, f, Task.CLASSIFY))


@pytest.fixture(scope="session")
def onnx_int8_classifier(onnx_classifier: Path, made_once: MadeOnce) -> Path:
    """The same in int8."""
    return made_once("onnx_int8_classifier", lambda f: _graphs().quantized(onnx_classifier, f, Task.CLASSIFY))


def _graphs() -> Any:
    """Imported where it is used: most tests need no ONNX."""
    return import_module("tests.graphs")


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    """A migrated database of the test's own."""
    return make_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url) as database:
        yield database


@pytest.fixture(scope="session")
def make_broker(addresses: StackAddresses) -> Callable[[], str]:
    """Brokers that share nothing: the numbered databases of one Valkey."""
    numbers = count(1)
    return lambda: f"{addresses.broker_url}?virtual_host={next(numbers) % 16}"


@pytest.fixture
def broker_url(make_broker: Callable[[], str]) -> str:
    return make_broker()


class Mill:
    """A database, a broker and as many workers as the test starts."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.folder = folder
        self.environment = {
            "BATCHMILL_DATABASE_URL": database_url,
            "BATCHMILL_BROKER_URL": broker_url,
            "BATCHMILL_ARTIFACTS": str(folder / "artifacts"),
            "BATCHMILL_TICK_SECONDS": "1",
        }
        self._running = ExitStack()
        self._numbers = count()
        self._logs: dict[int, Path] = {}

    def client(self) -> Client:
        return Client(
            database_url=self.environment["BATCHMILL_DATABASE_URL"],
            broker_url=self.environment["BATCHMILL_BROKER_URL"],
            home=self.folder,
            artifacts=self.environment["BATCHMILL_ARTIFACTS"],
        )

    def run_client(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script with a `client` in a process of its own."""
        text = f"from producer import Client\nclient = Client()\n{textwrap.dedent(script)}"
        environment = {**os.environ, **self.environment, "BATCHMILL_HOME": str(self.folder)}
        return subprocess.run(
            [sys.executable, "-c", text], env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=False
        )

    def worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker as a host of its own: its cache is its own; back once it takes tickets."""
        home = self.folder / f"worker{next(self._numbers)}"
        home.mkdir(parents=True)
        ready = home / "ready"
        process = self._start("worker", home, BATCHMILL_READY_FILE=str(ready), **settings)
        wait_until(lambda: ready.exists() or process.poll() is not None, 60)
        assert process.poll() is None, self.log(process)
        return process

    def beat(self) -> subprocess.Popen[bytes]:
        home = self.folder / f"beat{next(self._numbers)}"
        home.mkdir(parents=True)
        return self._start("worker.beat", home)

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has logged."""
        return self._logs[process.pid].read_text()

    def _start(self, module: str, home: Path, **settings: str) -> subprocess.Popen[bytes]:
        log = home / "log"
        environment = {**os.environ, **self.environment, "BATCHMILL_HOME": str(home), **settings}
        with log.open("wb") as stream:
            process = subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=stream, stderr=stream)
        self._logs[process.pid] = log
        self._running.callback(self.stop, process)
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        """End a process as an operator would, and hold it to its promise."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def close(self) -> None:
        self._running.close()


GENEROUS = 240.0
"""Seconds that are enough on any machine, however busy: a test waits for what happens, and not for a time."""


def wait_until(condition: Callable[[], object], seconds: float = GENEROUS) -> None:
    """Wait for a condition, for so long at most, or longer where that is less than any machine may need."""
    deadline = time.monotonic() + max(seconds, GENEROUS)
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    return wait_until


@contextmanager
def _mill(folder: Path, database_url: str, broker_url: str) -> Iterator[Mill]:
    mill = Mill(folder, database_url, broker_url)
    try:
        yield mill
    finally:
        mill.close()


@pytest.fixture
def mill(tmp_path: Path, database_url: str, broker_url: str) -> Iterator[Mill]:
    """Database and broker of the test's own, with no worker yet."""
    with _mill(tmp_path, database_url, broker_url) as mill:
        yield mill


@pytest.fixture(scope="module")
def running_mill(
    tmp_path_factory: pytest.TempPathFactory, make_database: Callable[..., str], make_broker: Callable[[], str]
) -> Iterator[Mill]:
    """The same with one worker and beat, shared by the tests of a module."""
    with _mill(tmp_path_factory.mktemp("mill"), make_database(), make_broker()) as mill:
        mill.worker()
        mill.beat()
        yield mill


@pytest.fixture
def client(running_mill: Mill) -> Iterator[Client]:
    with running_mill.client() as client:
        yield client


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """A RabbitMQ of the session's own, where it is installed; where tests must not be left out, it has to be."""
    if reason := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = Path(tempfile.mkdtemp(prefix="bm-rabbitmq-"))
    try:
        with rabbitmq(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)
