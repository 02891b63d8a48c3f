"""Where examples run: one embedded stack with its models, and for each page a folder with the files that it names."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from benchmarks.texts import stdlib_docstrings
from contracts.settings import Settings
from contracts.states import TERMINAL_JOB_STATES
from producer import Client
from stack import embedded
from tests.conftest import wait_until
from tests.docs.blocks import Block

RECEIVER = "https://reports.invalid/hooks"
LONG = 4_000
"""Texts of a job that is still at work when several commands have been given about it."""
SLOW = "fake:?dimensions=4&item_delay=0.05"
"""The model of that job: it takes minutes by itself, however fast the machine is."""
REVIEWS = 50
"""Rows of the table that is scored every night."""

# Commands that run until they are ended are started beside the others; when these are done, they must be running, and
# leave when they are asked to.
PREAMBLE = """
set -euo pipefail
servers=(); ready=
batchmill() {
    case "${1-}" in
        worker) ready=$(mktemp -u); BATCHMILL_READY_FILE=$ready env batchmill "$@" & servers+=($!) ;;
        beat | deliver | runner) env batchmill "$@" & servers+=($!) ;;
        *) env batchmill "$@" ;;
    esac
}
"""
FINALE = """
if [ -n "$ready" ]; then until [ -e "$ready" ]; do kill -0 "${servers[@]}"; sleep 0.1; done; fi
for server in ${servers[@]+"${servers[@]}"}; do
    kill -TERM "$server"
    wait "$server" || { code=$?; [ "$code" = 143 ] || exit "$code"; }
done
"""


class World:
    """An embedded stack, and what pages take for granted.

    Args:
        folder: Of a short path, as sockets live below it.
        encoder: What pages call all-MiniLM-L6-v2.
        speaker: What they call SmolLM2-135M-Instruct.Q4_1.gguf.
    """

    def __init__(self, folder: Path, encoder: Path, speaker: Path) -> None:
        self.folder, self.encoder, self.speaker = folder, encoder, speaker
        self.environment = {
            "BATCHMILL_HOME": str(folder / "home"),
            "BATCHMILL_WEBHOOK_RETRY_SECONDS": "0.1",  # an endpoint that does not exist is given up at once
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self) -> None:
        with Client() as client:
            for quantization in ("bf16", "nf4"):  # minilm@1, and minilm@2, which is the one that pages add
                client.models.add("minilm", str(self.encoder), quantization=quantization)
            client.models.add("slow", SLOW)
            with psycopg.connect(str(client.settings.database_url)) as database:
                database.execute("CREATE TABLE reviews (id bigint PRIMARY KEY, title text, body text)")
                for number, docstring in enumerate(stdlib_docstrings(REVIEWS), start=1):
                    title, _, body = docstring.partition("\n")
                    database.execute("INSERT INTO reviews VALUES (%s, %s, %s)", (number, title, body))

    def stop(self) -> None:
        embedded.down(Settings(home=self.folder / "home"))

    @contextmanager
    def page(self, name: str) -> Iterator["Page"]:
        """A folder for the blocks of a page; what they left at work is ended."""
        folder = self.folder / re.sub(r"\W", "-", name)
        folder.mkdir()
        texts = [f"{name}: {text}" for text in stdlib_docstrings(LONG)]
        (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'input': text})}\n" for text in texts))
        (folder / "texts.txt").write_text("\n".join(" ".join(text.split()) for text in texts[:50]))
        (folder / "held-back.txt").write_text("\n".join(" ".join(text.split()) for text in texts[50:70]))
        (folder / "reviews.csv").write_text("review,text\n1,The soup was cold.\n2,Best noodles in town.\n")
        with Client() as client, pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            yield Page(self, folder, client, texts)
        with Client() as client:  # the page may have ended the servers, and so the connections of its own client
            for job in client.jobs(limit=1000):
                if job.state not in TERMINAL_JOB_STATES:
                    job.cancel()


class Page:
    """One page while its blocks run, each after the one above it: Python blocks share their names."""

    def __init__(self, world: World, folder: Path, client: Client, texts: list[str]) -> None:
        self._environment = {
            **os.environ,
            **world.environment,
            "HOME": str(folder),  # what a command writes there is not the reader's own
            "DATABASE_URL": str(client.settings.database_url),
            "BROKER_URL": str(client.settings.broker_url),
            "MODEL": str(world.encoder),
        }
        self._world = world
        self._folder = folder
        self._client = client
        self._texts = texts
        self._names: dict[str, Any] = {"__name__": "example", "client": client, "texts": texts, "timedelta": timedelta}

    def run(self, block: Block) -> None:
        """Run a block.

        Raises:
            Exception: What the block raises; its traceback names the line of the page.
            AssertionError: A command of it failed, or nobody knows how to run it.
        """
        runners: Mapping[str, Callable[[Block, str], None]] = {
            "json": lambda _, code: json.loads(code) and None,
            "python": self._python,
            "sh": self._shell,
            "sql": self._sql,
            "toml": lambda _, code: tomllib.loads(code) and None,
            "yaml": lambda _, code: list(yaml.safe_load_all(code)) and None,
        }
        assert block.language in runners, (
            f"{block}: nobody runs {block.language!r}: choose one of {', '.join(runners)}, `text` for what is only "
            "shown, or put `<!-- not run: why -->` above the block"
        )
        runners[block.language](block, self._filled_in(block))

    def _filled_in(self, block: Block) -> str:
        """The code with its placeholders replaced."""
        code = block.code
        for placeholder, value in self._placeholders(block).items():
            if re.search(placeholder, code):
                stands_for = value() if callable(value) else value
                code = re.sub(placeholder, lambda _, text=stands_for: text, code)
        return code

    def _placeholders(self, block: Block) -> Mapping[str, str | Callable[[], str]]:
        """What pages write where a reader puts something of his own: a pattern, and what stands for it here."""
        named = {"docs/how-to/webhooks.md": self._dead_delivery, "docs/how-to/watch.md": self._short_job}
        return {
            r"(path/to|models)/all-MiniLM-L6-v2": str(self._world.encoder),
            r"(path/to|models)/SmolLM2-135M-Instruct\.Q4_1\.gguf": str(self._world.speaker),
            # The folder in the wheel is there; what is served is the world's.
            r"(?m)(?<=\)/model)$": f'; test -f "$MODEL/config.json"; MODEL={self._world.encoder}',
            r"postgresql://[^\s\"]*…[^\s\"]*": lambda: self._database(block.language),
            r"amqps://\S*…\S*": '"$BROKER_URL"',
            r"(?<=METRICS_PORT=)\d+": "0",
            r"s3://\S+": str(self._folder / "artifacts"),
            r"https://reports\.example\.com/hooks": RECEIVER,
            r"https://reports\.example\.com/nightly": f"{RECEIVER}/nightly",
            r"\bID…?": named.get(block.page, self._long_job),
            r"(?<=--dead )\d+|(?<=rotate )\d+|(?<=able )\d+": "1",
            r'\("", 8000\)': '("127.0.0.1", 0)',
            r"\.serve_forever\(\)": ".server_close()",
        }

    def _database(self, language: str) -> str:
        embedded.ensure(Settings(home=self._client.settings.home))  # the page may have ended it
        if language == "python":
            return str(self._client.settings.database_url)
        return '"$DATABASE_URL"'  # not itself: its `&` means something to a shell

    def _long_job(self) -> str:
        return str(self._client.submit("slow", [f"again: {text}" for text in self._texts]).id)

    def _short_job(self) -> str:
        return str(self._client.submit("minilm", self._texts[:100]).id)

    def _dead_delivery(self) -> str:
        self._client.submit("minilm", ["a text"], callback_url=self._client.webhooks.list()[0].url)
        wait_until(lambda: self._client.webhooks.deliveries(states=["dead"]), 60)
        return str(self._client.webhooks.deliveries(states=["dead"])[0].id)

    def _python(self, block: Block, code: str) -> None:
        tree = ast.parse(code, block.page)
        ast.increment_lineno(tree, block.line - 1)
        exec(compile(tree, block.page, "exec"), self._names)

    def _shell(self, block: Block, code: str) -> None:
        done = subprocess.run(
            ["bash", "-c", f"{PREAMBLE}\n{code}\n{FINALE}"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        sys.stdout.write(textwrap.indent(f"{block}\n{done.stdout}\n", "    "))
        assert done.returncode == 0, f"{block}: exit code {done.returncode}:\n{done.stdout}"

    def _sql(self, block: Block, code: str) -> None:
        with psycopg.connect(str(self._client.settings.database_url)) as database:
            database.execute(code.encode())
