import shutil
from pathlib import Path

import pytest

from contracts.errors import InvalidRequest, ModelRefused
from contracts.names import Quantization, Task
from producer.sources import FoundModel, find_model
from tests.models import MINILM
from tests.weights import put, write_gguf


def find(source: str, task: Task = Task.GENERATE, revision: str | None = None) -> FoundModel:
    return find_model(source, task, Quantization.NONE, revision)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_named_by_its_absolute_path(here):
    shutil.copytree(MINILM, "org/model")
    found = find("org/model", Task.EMBED)
    assert (found.source, found.engine, found.folder) == (str(here / "org/model"), "embed", here / "org/model")
    assert found.revision is None


def test_a_gguf_file_or_the_folder_that_holds_just_one(here):
    file = write_gguf(here / "models" / "tiny.gguf")
    put(file.parent, "README.md", "about it")
    for source in ("models/tiny.gguf", "models", str(file), "./models"):
        for task in (Task.GENERATE, Task.SCORE):
            found = find(source, task)
            assert (found.source, found.engine) == (str(file), str(task))
            assert (found.folder, found.files) == (file.parent, ["tiny.gguf"])
    write_gguf(here / "models" / "another.gguf")
    with pytest.raises(ModelRefused, match=r"models holds 2 GGUF files: give one of them, as in models/another\.gguf"):
        find("models")


def test_safetensors_are_preferred_where_a_folder_has_both(here):
    shutil.copytree(MINILM, "model")
    write_gguf(here / "model" / "tiny.gguf")
    found = find("model", Task.EMBED)
    assert "model.safetensors" in found.files
    assert "tiny.gguf" not in found.files


def test_only_a_hub_has_revisions(here):
    write_gguf(here / "tiny.gguf")
    for source in ("tiny.gguf", "fake:", "mine:thing"):
        with pytest.raises(InvalidRequest, match=r"'main'.*has none"):
            find(source, revision="main")


@pytest.mark.parametrize("source", ["~nobody-by-this-name/model", "x" * 300, "a\0b"])
def test_what_can_be_no_path_here_is_no_source(here, source):
    with pytest.raises(ModelRefused, match="there is no such folder or file"):
        find(source)


def test_what_is_no_source_is_said(here):
    Path("a.safetensors").touch()
    with pytest.raises(ModelRefused, match=r"is a file: give the folder .* or a file that ends in \.gguf"):
        find("a.safetensors")
    for source in (
        *("./models/minilm", "/nowhere/x", "nowhere", "a/b/c", "", "a b/c", "tiny.gguf"),
        *("org/name:../../x.gguf", "org/name:model.safetensors", "org/name:.gguf", "org/name:a.gguf/"),
    ):
        with pytest.raises(ModelRefused, match="no such folder or file.*org/name:file.gguf"):
            find(source)
