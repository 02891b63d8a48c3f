import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import kombu
import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text

from contracts.errors import StackError
from stack import privileges
from stack.layout import Layout
from stack.servers import servers
from stack.state import StackAddresses

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else for Postgres")


def write(addresses: StackAddresses, note: str) -> None:
    with psycopg.connect(addresses.database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (note text)")
        connection.execute("INSERT INTO notes VALUES (%s)", [note])


def notes(addresses: StackAddresses) -> list[str]:
    with psycopg.connect(addresses.database_url) as connection:
        return [note for (note,) in connection.execute("SELECT note FROM notes ORDER BY note")]


def test_both_servers_work_twice_in_a_row_and_leave_nothing(
    home: Path, running: Callable[[Path], list[psutil.Process]]
) -> None:
    with servers(home) as first:
        write(first, "kept")
        with kombu.Connection(first.broker_url) as broker:
            broker.SimpleQueue("notes").put({"note": "kept"})
        with psycopg.connect(first.database_url) as connection:
            (extension,) = connection.execute("SELECT '[1,2]'::vector <-> '[1,4]'").fetchone()
            (addresses,) = connection.execute("SHOW listen_addresses").fetchone()
        assert (extension, addresses) == (2.0, "")
        listening = {connection.pid for connection in psutil.net_connections("tcp")}
        assert listening.isdisjoint(process.pid for process in running(home))
    assert running(home) == []
    with servers(home) as second:
        assert second == first
        assert notes(second) == ["kept"]
        with kombu.Connection(second.broker_url) as broker:
            queue = broker.SimpleQueue("notes")
            message = queue.get(timeout=5)
            message.ack()
            assert message.payload == {"note": "kept"}
    assert running(home) == []
    for folder in (
        home,
        home / "postgres",
        home / "run",
        home / "logs",
        Path(urlsplit(first.broker_url).path).parent,
    ):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_any_home_will_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = home / "größer, 100 % & 'mehr'?" / ("x" * 120)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    monkeypatch.setenv("PGPORT", "6543")  # of another server on the machine
    home.mkdir()
    with servers(odd) as addresses:
        write(addresses, "here")
        engine = create_engine(addresses.database_url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT note FROM notes")).scalar() == "here"
        engine.dispose()
        with kombu.Connection(addresses.broker_url) as broker:
            broker.ensure_connection(max_retries=1)
        assert Path(urlsplit(addresses.broker_url).path).parent.parent == home


def test_a_home_that_cannot_be_used_is_named(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(StackError, match=rf"{home}.*a file stands.*BATCHMILL_HOME"), servers(home):
        pass
    home.unlink()
    with pytest.raises(StackError, match=r"/proc/batchmill.*cannot be written.*BATCHMILL_HOME"):
        Layout.of(Path("/proc/batchmill")).prepare()


def test_what_a_crash_left_does_not_keep_postgres_from_starting(home: Path) -> None:
    with servers(home) as addresses:
        write(addresses, "kept")
    postgres = home / "postgres"
    # The number of a living process, and of one that may be signalled: this one.
    (postgres / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres / 'data'}\n1\n5432\n\n\n0 0\nready\n")
    (home / "run" / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    with servers(home) as addresses:
        assert notes(addresses) == ["kept"]


def test_an_interrupted_initdb_is_begun_anew(home: Path) -> None:
    (home / "postgres" / "initdb-killed").mkdir(parents=True)
    (home / "postgres" / "initdb-killed" / "PG_VERSION").write_text("18\n")
    with servers(home) as addresses:
        write(addresses, "new")
    assert [path.name for path in (home / "postgres").iterdir()] == ["data"]


def test_two_do_not_share_a_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.servers.LOCK_SECONDS", 0.1)
    with servers(home), pytest.raises(StackError, match=r"supervisor\.lock.*another process"), servers(home):
        pass


@as_root
def test_without_user_namespaces_root_runs_postgres_as_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="bm-") as state:
        Path(state).chmod(0o755)
        monkeypatch.setattr(privileges, "SYSTEM_STATE", Path(state) / "batchmill")
        with monkeypatch.context() as refused:
            refused.setattr(privileges.shutil, "which", lambda _: None)
            # A wheel that only root can reach has to be copied.
            refused.setattr(privileges, "_works", lambda account, folder: account.install.is_relative_to(state))
            with servers(home) as addresses:
                write(addresses, "kept")
                pid = int(next(Path(state).glob("batchmill/*/data/postmaster.pid")).read_text().split()[0])
                assert psutil.Process(pid).username() == "nobody"
                assert Path(psutil.Process(pid).exe()).is_relative_to(state)
        # When the kernel allows them one day, the data is still where it was.
        with servers(home) as addresses:
            assert notes(addresses) == ["kept"]
