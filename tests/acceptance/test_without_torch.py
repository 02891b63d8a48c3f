"""A client's machine: nothing that runs models is installed there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import schema
from tests.conftest import Mill
from tests.weights import write_gguf

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import importlib.util
import sys
assert not any(map(importlib.util.find_spec, ("torch", "transformers", "bitsandbytes", "tokenizers", "safetensors")))
from producer import Client
with Client() as client:
    client.models.add("vectors", "fake:")
    job = client.submit("vectors", ["one", "two"]).wait(timeout=300)
    assert client.models.add("tiny", sys.argv[1], task="generate").memory_bytes > 0
    print(job.counts.computed, next(job.results()).output.shape, job.to_arrow().num_rows)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client alone."""
    folder = tmp_path_factory.mktemp("client") / "venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    install = ["install", "--constraint", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run([*pip, "--python", str(interpreter), *install], check=True)
    return interpreter


def test_a_client_without_torch_submits_and_reads(python: Path, mill: Mill, tmp_path: Path) -> None:
    mill.worker()
    environment = {**os.environ, **mill.environment, "BATCHMILL_HOME": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(python), "-c", SCRIPT, str(write_gguf(tmp_path / "tiny.gguf"))],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2 (384,) 2\n", done.stderr


def test_the_command_line_migrates_and_lists_there(
    python: Path, make_database: Callable[..., str], mill: Mill, tmp_path: Path
) -> None:
    """The wheel holds the revisions."""
    environment = {**os.environ, **mill.environment, "BATCHMILL_HOME": str(tmp_path)}
    environment["BATCHMILL_DATABASE_URL"] = make_database(migrated=False)
    for arguments, printed in ((["migrate"], schema.HEAD), (["models", "list", "--json"], "[]")):
        command = [str(python.parent / "batchmill"), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == printed
