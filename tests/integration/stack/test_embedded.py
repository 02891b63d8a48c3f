import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from contracts.errors import ConfigurationError, StackError
from contracts.settings import Settings
from stack.embedded import StackStatus, down, ensure, status
from stack.programs import environment
from stack.state import StackAddresses

Running = Callable[[Path], list[psutil.Process]]
Eventually = Callable[..., None]

ROOT = Path(__file__).resolve().parents[3]
STANDIN = (sys.executable, str(Path(__file__).with_name("standin.py")), "--detach")


def start(home: Path) -> StackAddresses:
    return ensure(Settings(home=home), command=STANDIN)


def write(addresses: StackAddresses, note: str) -> None:
    with psycopg.connect(addresses.database_url) as connection:
        connection.execute("INSERT INTO notes VALUES (%s)", [note])


def notes(addresses: StackAddresses) -> list[str]:
    with psycopg.connect(addresses.database_url) as connection:
        return [note for (note,) in connection.execute("SELECT note FROM notes ORDER BY note")]


def pids(found: StackStatus) -> dict[str, int]:
    assert found.supervisor_pid is not None
    return {"supervisor": found.supervisor_pid} | {child.name: child.pid for child in found.children if child.pid}


def test_callers_at_once_get_one_stack_and_down_ends_it(home: Path, running: Running) -> None:
    settings = Settings(home=home)
    assert not status(settings).running
    assert not down(settings)
    assert not home.exists()
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(start, [home] * 4))
    assert found == {start(home)}
    seen = status(settings)
    assert seen.running
    assert seen.ready
    assert not seen.worker_ready
    assert set(pids(seen)) == {"supervisor", "postgres", "valkey", "worker", "beat"}
    # Ctrl-C in a terminal signals one process group; none of these is in ours, nor in one with another.
    groups = [os.getpgid(pid) for pid in pids(seen).values()]
    assert len({*groups, os.getpgid(0)}) == len(groups) + 1
    assert down(settings)
    assert running(home) == []
    assert status(settings) == StackStatus(home, False, False, False, None, None, ())
    assert not down(settings)


def test_it_survives_any_death(home: Path, running: Running, eventually: Eventually) -> None:
    settings = Settings(home=home)
    everything = {"supervisor", "postgres", "valkey", "worker", "beat"}
    write(start(home), "kept")
    for killed, replaced in [
        ({"postgres"}, {"postgres"}),
        ({"valkey"}, {"valkey"}),
        ({"worker"}, {"worker"}),
        ({"supervisor"}, everything),
        (everything, everything),
    ]:
        before = pids(status(settings))
        victims = {before[name] for name in killed}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda gone=victims: gone.isdisjoint(process.pid for process in running(home)))
        assert notes(start(home)) == ["kept"]
        count = len(replaced)
        eventually(lambda old=before, n=count: len(pids(status(settings)).items() - old.items()) == n)
        after = pids(status(settings))
        assert {name for name in everything if before[name] != after[name]} == replaced
        assert {before[name] for name in replaced}.isdisjoint(process.pid for process in running(home))
    assert down(settings)
    assert running(home) == []


def test_down_ends_what_a_killed_supervisor_left(
    home: Path, running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "stubborn")
    monkeypatch.setattr("stack.processes.ORPHAN_SECONDS", 1.0)
    start(home)
    # Worker and beat, and one below each of them.
    eventually(lambda: sum("below" in process.cmdline() for process in running(home)) == 2)
    os.kill(pids(status(Settings(home=home)))["supervisor"], signal.SIGKILL)
    assert down(Settings(home=home))
    assert running(home) == []


def test_a_stubborn_worker_is_killed_with_what_it_started(
    home: Path, running: Running, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "stubborn")
    start(home)
    eventually(lambda: len(_below(running(home))) == 2)
    before = _below(running(home))
    os.kill(pids(status(Settings(home=home)))["worker"], signal.SIGKILL)
    eventually(lambda: len(_below(running(home)) - before) == 1 and len(_below(running(home))) == 2)
    assert down(Settings(home=home))
    assert running(home) == []
    assert "received fast shutdown request" in (home / "logs" / "postgres.log").read_text()


def _below(processes: list[psutil.Process]) -> set[int]:
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if "below" in process.cmdline():
                found.add(process.pid)
    return found


def test_ctrl_c_ends_a_stack_in_the_foreground_in_reverse_order(
    home: Path, running: Running, eventually: Eventually
) -> None:
    settings = Settings(home=home)
    with subprocess.Popen(STANDIN[:2], env=environment(settings), stderr=subprocess.PIPE, text=True) as supervisor:
        eventually(lambda: status(settings).ready)
        supervisor.send_signal(signal.SIGINT)
        _, log = supervisor.communicate(timeout=300)
    assert supervisor.returncode == 0
    ended = [line.removeprefix("ending ") for line in log.splitlines() if line.startswith("ending ")]
    assert ended == ["worker, beat", "valkey", "postgres"]
    assert running(home) == []


def test_two_homes_run_side_by_side(home: Path, running: Running) -> None:
    one, other = home / "one", home / "other"
    write(start(one), "one")
    write(start(other), "other")
    assert notes(start(one)) == ["one"]
    assert down(Settings(home=one))
    assert running(one) == []
    assert notes(start(other)) == ["other"]
    assert down(Settings(home=other))


def test_a_failed_start_says_why_and_leaves_nothing(
    home: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "upgrade")
    with pytest.raises(StackError, match=r"supervisor\.log(.|\n)*the schema cannot be brought up to date"):
        start(home)
    assert running(home) == []
    monkeypatch.delenv("STANDIN")
    assert start(home)


def test_a_stack_whose_home_is_removed_ends_and_does_not_disturb_the_next(
    home: Path, running: Running, eventually: Eventually
) -> None:
    start(home)
    old = {process.pid for process in running(home)}
    shutil.rmtree(home)
    write(start(home), "new")
    eventually(lambda: old.isdisjoint(process.pid for process in running(home)))
    assert notes(start(home)) == ["new"]
    assert {child.restarts for child in status(Settings(home=home)).children} == {0}


def test_servers_of_ones_own_are_not_started_here(home: Path) -> None:
    settings = Settings(home=home, database_url="postgresql://elsewhere/db", broker_url="redis://elsewhere")
    with pytest.raises(ConfigurationError, match="BATCHMILL_DATABASE_URL"):
        ensure(settings, command=STANDIN)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_can_run_it(home: Path, running: Running) -> None:
    home.parent.chmod(0o755)
    home.mkdir(mode=0o700)
    shutil.chown(home, "nobody")
    script = (
        "import sys; from contracts.settings import load_settings; from stack.embedded import ensure, down\n"
        "settings = load_settings(); print(ensure(settings, command=sys.argv[1:]).database_url)\n"
        "print(down(settings))"
    )
    command = ["/usr/sbin/runuser", "-u", "nobody", "--", sys.executable, "-W", "error", "-c", script, *STANDIN]
    try:
        subprocess.run(
            ["/usr/sbin/runuser", "-u", "nobody", "--", *STANDIN[:1], "-c", f"open({STANDIN[1]!r})"], check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the interpreter or the sources cannot be read by another user")
    done = subprocess.run(
        command, env=environment(Settings(home=home)), cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == [
        f"postgresql://batchmill@/batchmill?host={home}/run&port=5432",
        "True",
    ], done.stderr
    assert running(home) == []
    assert (home / "postgres" / "data" / "PG_VERSION").owner() == "nobody"
    # What is theirs is not root's to run.
    with pytest.raises(StackError, match=f"{home} holds the stack of user"):
        start(home)
