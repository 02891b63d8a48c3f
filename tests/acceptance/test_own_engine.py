"""An engine of somebody else's: the package of the guide, built, installed apart, and run by a real worker."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contracts.errors import JobFailed
from producer import Client
from tests.conftest import Mill

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "own_engine"
GUIDE = ROOT / "docs" / "how-to" / "own-engine.md"

BROKEN = """
from tabular import TabularEngine

class ShortEngine(TabularEngine):
    def run(self, rows, params):
        return super().run(rows, params)[: max(len(rows) - 1, 1)]
"""
BROKEN_POINTS = "[batchmill.engines]\nshort = broken:ShortEngine\ngone = no_such_module:Engine\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, and one whose engines are broken."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    command = [*pip, "install", "--no-deps", "--target", str(folder), str(SAMPLE)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    (folder / "broken.py").write_text(BROKEN)
    (folder / "broken-1.0.dist-info").mkdir()
    (folder / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "broken-1.0.dist-info" / "entry_points.txt").write_text(BROKEN_POINTS)
    return folder


@pytest.fixture(scope="module")
def mill(
    tmp_path_factory: pytest.TempPathFactory,
    make_database: Callable[..., str],
    make_broker: Callable[[], str],
    site: Path,
) -> Iterator[Mill]:
    """With a worker that has the packages; clients have not."""
    with closing(Mill(tmp_path_factory.mktemp("mill"), make_database(), make_broker())) as mill:
        mill.worker(PYTHONPATH=str(site))
        mill.beat()
        yield mill


@pytest.fixture
def client(mill: Mill) -> Iterator[Client]:
    with mill.client() as client:
        yield client


@pytest.fixture(scope="module")
def tabular() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tabular_sample", SAMPLE / "tabular.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network(tabular: ModuleType) -> torch.nn.Module:
    torch.manual_seed(7)
    return tabular.network()


@pytest.fixture
def weights(network: torch.nn.Module, tmp_path: Path) -> Path:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def blocks(language: str) -> list[str]:
    """The guide's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_guide_shows_the_very_files() -> None:
    for name, language in (("tabular.py", "python"), ("pyproject.toml", "toml")):
        assert (SAMPLE / name).read_text() == blocks(language)[0], (
            f"{name} and the guide differ: copy one into the other"
        )


def test_the_guide_works_as_it_is_written(mill: Mill, site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, **mill.environment, "BATCHMILL_HOME": str(tmp_path), "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        return subprocess.run(
            command, env=environment, cwd=tmp_path, check=True, timeout=300, text=True, stdout=subprocess.PIPE
        ).stdout

    _, weights, submission = blocks("python")
    run(sys.executable, "-c", weights)
    assert re.findall(r"^(\d) \[", run(sys.executable, "-c", submission), re.MULTILINE) == ["0", "1"]
    _, command = blocks("sh")
    _, *arguments = command.split()
    assert run(str(Path(sys.executable).parent / "batchmill"), *arguments) == "rows@1\n"


def test_the_class_is_as_short_as_promised() -> None:
    source = (SAMPLE / "tabular.py").read_text()
    [body] = re.findall(r"^class TabularEngine.*?(?=^def row)", source, re.MULTILINE | re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_outputs_are_those_of_the_module(client: Client, weights: Path, network: torch.nn.Module) -> None:
    spec = client.models.add("outputs", f"tabular:{weights}", task="embed")
    assert (spec.engine, [file.path for file in spec.files]) == ("tabular", ["model.safetensors"])
    rows = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
    job = client.submit("outputs", rows.tolist()).wait(timeout=300)
    outputs = np.stack([result.output for result in job.results()])
    with torch.inference_mode():
        alone = np.concatenate([network(torch.from_numpy(row[None])).numpy() for row in rows])
    assert np.abs(outputs - alone).max() < 1e-6


def test_an_input_of_another_shape_fails_alone(client: Client, weights: Path) -> None:
    client.models.add("shapes", f"tabular:{weights}", task="embed")
    good = [0.5, 1.5, 2.5, 3.5]
    results = [*client.submit("shapes", [good, [1.0, 2.0], "text", {"a": 1}]).wait(timeout=300).results()]
    assert results[0].error is None
    assert [result.error and result.error.code for result in results[1:]] == ["invalid_input"] * 3
    assert "expected 4 numbers, got the shape [2]" in str(results[1].error)


def test_an_output_too_few_fails_the_whole_and_keeps_nothing(client: Client, weights: Path) -> None:
    client.models.add("short", f"short:{weights}", task="embed")
    rows = [[float(place), 0.0, 0.0, 0.0] for place in range(8)]
    job = client.submit("short", rows).wait(timeout=300)
    errors = [result.error for result in job.results()]
    assert {error and (error.code, error.message) for error in errors} == {
        ("invalid_output", "engine 'short' gave 7 outputs for 8 inputs")
    }
    assert client.submit("short", rows[:1]).wait(timeout=300).counts.cached == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [("gone:thing", "No module named 'no_such_module'"), ("nobodys:thing", "not installed on this worker")],
)
def test_an_engine_that_cannot_be_had_fails_only_its_models(
    client: Client, weights: Path, source: str, said: str
) -> None:
    client.models.add(source.partition(":")[0], source, task="classify")
    client.models.add("other", f"tabular:{weights}", task="embed")
    broken = client.submit(source.partition(":")[0], ["a", "b"])
    with pytest.raises(JobFailed, match=said):
        broken.wait(timeout=300)
    assert client.submit("other", [[1.0, 2.0, 3.0, 4.0]]).wait(timeout=300).counts.failed == 0
