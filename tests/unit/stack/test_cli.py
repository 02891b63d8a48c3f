"""How the command line reads its arguments, and how a run of it ends; no server is started."""

import sys
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner, Result

from contracts.errors import DatabaseUnavailable, InvalidInput
from producer.cli.app import execute
from producer.cli.session import Session
from stack.cli import app, main


def invoke(*arguments: str, client: Any = None) -> Result:
    opened = Mock()
    opened.return_value.__enter__ = Mock(return_value=client)
    opened.return_value.__exit__ = Mock(return_value=None)
    return CliRunner().invoke(app, arguments, obj=Session(opened), catch_exceptions=False)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n")
    return str(path)


@pytest.mark.parametrize(
    "command", [[], ["jobs"], ["models"], ["run"], ["submit"], ["up"], ["down"], ["worker"], ["migrate"], ["doctor"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    result = invoke(*command, "--help")

    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run", "{texts}", "--model", "m"],
        ["run", "{texts}", "--model", "m", "-o", "a.csv", "--quantization", "nf4"],
        ["run", "{texts}", "--model", "m", "-o", "a.csv", "--priority", "urgent"],
        ["submit", "{texts}", "--model", "m", "--param", "precision"],
        ["submit", "{texts}", "--model", "m", "--params", "[]"],
        ["submit", "{texts}", "--model", "m", "--expires-in", "soon"],
        ["submit", "{texts}", "--model", "m", "--progress-at", "half"],
        ["jobs", "list", "--state", "sleeping"],
        ["jobs", "cancel"],
        ["jobs", "list", "--limit", "0"],
        ["models", "add", "m"],
        ["models", "add", "m", "fake:", "--quantization", "int3"],
        ["worker", "--slots", "1"],
    ],
)
def test_wrong_usage_ends_with_2_and_says_so_on_stderr(arguments: list[str], texts: str) -> None:
    result = invoke(*(argument.format(texts=texts) for argument in arguments))

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


def test_parameters_reach_the_submission(texts: str) -> None:
    client = Mock()
    client.submit.return_value.id = "an-id"
    result = invoke(
        *("submit", texts, "--model", "m", "--params", '{"precision": "float16", "truncate": true}'),
        *("--param", "truncate=false", "--priority", "bulk", "--idempotency-key", "k"),
        *("--metadata", "night=12", "--metadata", "who=me"),
        *("--expires-in", "2h", "--callback-url", "https://a.example/", "--progress-at", "25,50"),
        client=client,
    )

    assert (result.exit_code, result.stdout) == (0, "an-id\n")
    assert client.submit.call_args.args[0] == "m"
    assert client.submit.call_args.kwargs == {
        "on_bad": None,
        "params": {"precision": "float16", "truncate": False},
        "priority": "bulk",
        "idempotency_key": "k",
        "metadata": {"night": 12, "who": "me"},
        "expires_in": 7200,
        "callback_url": "https://a.example/",
        "progress_at": [25, 50],
    }


def test_files_are_looked_at_before_anything_is_started(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Mock()
    for arguments, reason in (
        (["run", str(tmp_path / "none.txt"), "-m", "m", "-o", str(tmp_path / "a.csv")], "No such file"),
        (["run", texts, "-m", "m", "-o", str(tmp_path / "a.xlsx")], "the suffix says how to write results"),
        (["run", texts, "-m", "m", "-o", str(tmp_path / "none" / "a.csv")], "there is no folder"),
        (["submit", texts, "-m", "m", "--id-column", "key"], "a .txt file has no columns"),
    ):
        monkeypatch.setattr(sys, "argv", ["batchmill", *arguments])
        assert execute(Session(opened)) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        assert reason in line
    opened.assert_not_called()


@pytest.mark.parametrize("verbose", [False, True])
def test_an_error_is_one_line_unless_more_is_asked_for(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> NoReturn:
        raise DatabaseUnavailable("postgresql://host/name does not answer: start it")

    monkeypatch.setattr(sys, "argv", ["batchmill", *["-v"][: int(verbose)], "jobs", "list"])
    assert execute(Session(refuse)) == 1

    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: postgresql://host/name does not answer: start it"
    assert (len(lines) > 1) is verbose
    assert any("Traceback" in line for line in lines) is verbose


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ZeroDivisionError("division"),
            "this is a bug of batchmill: ZeroDivisionError: division (`batchmill --verbose …` shows",
        ),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_what_nobody_foresaw_is_one_line_as_well(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, many in ((["jobs", "list"], False), (["--verbose", "jobs", "list"], True)):
        monkeypatch.setattr(sys, "argv", ["batchmill", *arguments])
        assert execute(Session(Mock(side_effect=error))) == 1
        captured = capsys.readouterr().err
        assert captured.splitlines()[-1].startswith(f"error: {line}")
        assert ("Traceback" in captured) is many


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["batchmill", "jobs", "list"])

    assert execute(Session(Mock(side_effect=KeyboardInterrupt))) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_one_url_without_the_other_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCHMILL_DATABASE_URL", "postgresql://localhost/batchmill")
    monkeypatch.delenv("BATCHMILL_BROKER_URL", raising=False)
    for command in (["jobs", "list"], ["up"], ["down"], ["worker"], ["migrate"]):
        monkeypatch.setattr(sys, "argv", ["batchmill", *command])
        assert main() == 1
        assert capsys.readouterr().err.startswith("error: BATCHMILL_BROKER_URL is not set")


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_dry_run_that_would_be_refused_ends_with_1(skip_bad: bool, texts: str) -> None:
    from producer.check import Check

    client = Mock()
    client.check.return_value = Check(items=2, bad=1, errors=[InvalidInput("not JSON", "a.jsonl, line 2")])
    result = invoke("submit", texts, "-m", "m", "--dry-run", *["--skip-bad"][: int(skip_bad)], client=client)

    assert result.exit_code == (0 if skip_bad else 1)
    assert "a.jsonl, line 2: not JSON" in result.stderr
    assert result.stdout.splitlines()[0].split() == ["items", "2"]
    client.submit.assert_not_called()
