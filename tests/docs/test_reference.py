"""The site is built without a warning, and its reference names everything that the code has."""

import ast
import html
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command

import producer
import stack.cli
from contracts.itemcodes import ENGINE_FAULTS, ItemCode
from contracts.params import PARAMS
from contracts.settings import Settings
from docs_tools import errors
from docs_tools.recipes import SECTIONS
from tests.docs.blocks import ROOT
from worker.metrics import METRICS

QUIET = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What a reader of a built page sees, and the names that can be linked to."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "docs_tools", ".docs"], cwd=ROOT, check=True, timeout=300)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def read(name: str) -> str:
        source = (site / f"{name}.html").read_text()
        anchors = re.findall(r'id="([^"]+)"', source)
        return "\n".join([html.unescape(re.sub(r"<[^>]+>", "", source)), *anchors])

    return read


def missing(names: Iterator[str] | list[str], page: str) -> list[str]:
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page)]


def test_every_setting_is_there(page: Callable[[str], str]) -> None:
    assert missing([f"BATCHMILL_{name.upper()}" for name in Settings.model_fields], page("reference/settings")) == []


def test_every_error_is_there_with_its_code(page: Callable[[str], str]) -> None:
    kinds = [kind for _, kind in errors.tree()]
    assert missing([*(kind.__name__ for kind in kinds), *(kind.code for kind in kinds)], page("reference/errors")) == []


def test_every_code_of_an_item_is_there(page: Callable[[str], str]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", errors.render_items(), re.MULTILINE)
    assert [code for code, _, _ in rows] == list(ItemCode)
    assert {code for code, _, fault in rows if fault == "the engine's"} == ENGINE_FAULTS
    _, _, items = page("reference/errors").partition("Of items")
    assert missing(list(ItemCode), items) == []


def test_an_item_fails_by_a_code_of_the_table() -> None:
    """Nothing in `worker` or `storage` fails an item by a string of its own."""
    taken = set()
    for path in [*ROOT.glob("worker/**/*.py"), *ROOT.glob("storage/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="ItemFailed"), args=[first, *_]):
                    literals = [part.value for part in ast.walk(first) if isinstance(part, ast.Constant)]
                    assert literals == [], f"{path}:{node.lineno}: ItemFailed({literals[0]!r}, …)"
                    taken |= {
                        ItemCode[part.attr]
                        for part in ast.walk(first)
                        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "ItemCode"
                    }
    assert taken == set(ItemCode)


def test_every_command_is_there_with_its_options(page: Callable[[str], str]) -> None:
    wanted = list(_commands(get_command(stack.cli.app), "batchmill"))
    assert "batchmill jobs list" in wanted
    assert missing(wanted, page("reference/cli")) == []


def _commands(command: click.Command, name: str) -> Iterator[str]:
    yield name
    for parameter in command.params:
        yield from (option for option in parameter.opts if option.startswith("--") and option != "--help")
    for part, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{name} {part}")


def test_every_metric_is_there(page: Callable[[str], str]) -> None:
    assert missing([metric.name for metric in METRICS], page("reference/metrics")) == []


def test_every_task_is_there_with_its_parameters(page: Callable[[str], str]) -> None:
    names = [name for kind in PARAMS.values() for name in kind.model_fields]
    assert missing([*map(str, PARAMS), *names], page("reference/tasks")) == []


def test_every_step_is_there_with_its_options(page: Callable[[str], str]) -> None:
    names = [name for kind in SECTIONS.values() for name in kind.model_fields if name not in ("step", "format")]
    assert missing(names, page("reference/recipes")) == []


def test_everything_that_the_client_exports_is_there(page: Callable[[str], str]) -> None:
    objects = [getattr(producer, name) for name in producer.__all__]
    assert missing([f"{o.__module__}.{o.__qualname__}" for o in objects], page("reference/client")) == []


def test_pages_fetch_nothing_from_elsewhere(
    page: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    fetched = re.compile(r"<(?:script|link|img)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
    page("index")
    for path in Path(tmp_path_factory.getbasetemp()).glob("site*/**/*.html"):
        assert fetched.findall(path.read_text()) == [], path
