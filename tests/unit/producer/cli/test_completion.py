"""Completion as a shell asks for it: through the environment of the real console script, with no server about."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("batchmill")
EVERY_COMMAND = {"run", "submit", "jobs", "models", "webhooks", "top", "purge", "up", "down", "worker", "doctor"}


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
    env = {**kept, "BATCHMILL_HOME": str(home / "nowhere"), **environment}
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)


def offered(home: Path, shell: str, line: str) -> list[str]:
    """The words that a shell is offered for the last word of a line, which may be empty."""
    words = line.split(" ")
    asked = {
        "_BATCHMILL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = run(home, **asked)
    assert done.stderr == ""
    match shell:
        case "bash":
            return done.stdout.split()
        case "fish":
            return [found.partition("\t")[0] for found in done.stdout.split("\n") if found]
        case _:  # _arguments '*: :(("name":"what it is"
            return [part.split('"')[0] for part in done.stdout.replace('(("', '\n"').split('\n"')[1:]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_fixed_values_are_offered(shell: str, tmp_path: Path) -> None:
    assert set(offered(tmp_path, shell, "batchmill ")) >= EVERY_COMMAND
    assert offered(tmp_path, shell, "batchmill jobs list --state r") == ["receiving", "running"]
    assert offered(tmp_path, shell, "batchmill models add n s --quantization nf") == ["nf4", "nf4-double"]


@pytest.mark.parametrize(
    "line", ["models show m", "jobs watch 0", "webhooks disable ", "submit f -m m", "jobs list --pool d"]
)
def test_without_servers_nothing_is_offered_said_or_started(line: str, tmp_path: Path) -> None:
    assert offered(tmp_path, "bash", f"batchmill {line}") == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_gone_is_no_error(tmp_path: Path) -> None:
    home = tmp_path / "nowhere"
    home.mkdir()
    for state in ("{", "{}", f'{{"database_url": "postgresql:///x?host={home}"}}'):
        (home / "stack.json").write_text(state)
        assert offered(tmp_path, "fish", "batchmill models show m") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_the_script_that_is_shown(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    shown = run(tmp_path, "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0, shown.stderr
    check = subprocess.run([shell, "-n"], input=shown.stdout, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stderr) == (0, "")
    assert "batchmill" in shown.stdout


def test_bash_fills_in_what_the_function_answers(tmp_path: Path) -> None:
    shown = run(tmp_path, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    ask = 'COMP_WORDS=(batchmill jobs li); COMP_CWORD=2; _batchmill_completion batchmill; echo "${COMPREPLY[@]}"'
    env = {**os.environ, "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{shown}\n{ask}"], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("list\n", "")
