import subprocess
import sys

SCRIPT = """
import signal, sys, time
from worker.vital import vital_thread

def ended(*_):
    print("asked to end", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, ended)

def loop():
    if sys.argv[1] == "dies":
        raise RuntimeError("of this")

vital_thread("device", loop).start()
signal.sigtimedwait([], 10) if sys.argv[1] == "dies" else None
print("still here", flush=True)
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_process_ends_with_a_vital_thread_that_dies() -> None:
    done = run("dies")
    assert done.stdout == "asked to end\n"
    assert "the device thread died" in done.stderr
    assert "of this" in done.stderr


def test_a_thread_that_returns_ends_nothing() -> None:
    assert run("returns").stdout == "still here\n"
