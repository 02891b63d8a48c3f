"""What of a source gets into the register and the artifact store."""

from pathlib import Path

import pytest

from contracts.errors import ModelRefused
from producer.registry import Models
from storage.artifacts import ArtifactStore
from storage.database import Database
from tests.weights import put, safetensors, write_gguf


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def models(database: Database, artifacts: ArtifactStore) -> Models:
    return Models(database, artifacts.url)


def test_a_gguf_file_reaches_the_store_alone(models: Models, artifacts: ArtifactStore, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "models" / "tiny.gguf")
    put(file.parent, "README.md", "about it")
    spec = models.add("tiny", str(file), task="generate", quantization="bf16")
    assert (spec.source, spec.engine, spec.memory_bytes) == (str(file), "generate", 2 * (10 * 32 + 64 * 32 + 30))
    folder = artifacts.fetch(spec.files, tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["tiny.gguf"]
    assert (folder / "tiny.gguf").read_bytes() == file.read_bytes()
    assert models.add("tiny", str(file.parent), task="generate", quantization="bf16").version == 1
    assert models.add("tiny", str(file.parent), task="score", quantization="bf16").version == 2


def test_a_thing_without_files_is_known_by_its_words(models: Models, artifacts: ArtifactStore, tmp_path: Path) -> None:
    spec = models.add("thing", "mine:small?layers=2", task="classify")
    assert (spec.source, spec.engine, spec.files) == ("mine:small?layers=2", "mine", [])
    assert [*artifacts.fetch(spec.files, tmp_path / "cache").iterdir()] == []
    assert models.add("thing", "mine:small?layers=2", task="classify").version == 1
    assert models.add("thing", "mine:small?layers=3", task="classify").version == 2


def test_a_file_of_an_engine_is_known_by_its_content(models: Models, tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / name, "model.safetensors", safetensors({"a": ("F32", [10], 40)}))
        assert models.add("files", f"mine:{tmp_path / name}", task="embed").version == 1
    put(tmp_path / "two", "labels.txt", "more")
    assert models.add("files", f"mine:{tmp_path / 'two'}", task="embed").version == 2


def test_what_is_refused_leaves_nothing_behind(models: Models, artifacts: ArtifactStore, tmp_path: Path) -> None:
    put(tmp_path / "pickled", "model.pt", "x")
    with pytest.raises(ModelRefused, match="run any code"):
        models.add("pickled", f"mine:{tmp_path / 'pickled'}", task="embed")
    assert models.list() == []
    assert not Path(artifacts.url).exists()
