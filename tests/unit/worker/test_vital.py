import os
import subprocess
import sys

SCRIPT = """
import atexit, sys, threading
from worker.vital import vital_thread

atexit.register(print, "given back", flush=True)

def die_of(text):
    raise RuntimeError(f"it quotes {text}")

def loop():
    if sys.argv[1] == "dies":
        die_of("an input")

thread = vital_thread("device", loop)
thread.start()
thread.join()
threading.Event().wait(10) if sys.argv[1] == "dies" else None
print("still here", flush=True)
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_process_ends_with_a_vital_thread_that_dies() -> None:
    done = run("dies")
    assert done.returncode == os.EX_SOFTWARE
    assert done.stdout == ""
    assert "the device thread died of RuntimeError" in done.stderr
    assert "in die_of" in done.stderr
    assert "this worker ends" in done.stderr.splitlines()[-1]
    assert "an input" not in done.stderr.replace('die_of("an input")', "")


def test_a_thread_that_returns_ends_nothing() -> None:
    assert run("returns").stdout == "still here\ngiven back\n"
