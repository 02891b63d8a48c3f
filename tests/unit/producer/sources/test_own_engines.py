from pathlib import Path

import pytest

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.sources import FoundModel, find_model
from tests.weights import put, safetensors


def find(source: str) -> FoundModel:
    return find_model(source, Task.EMBED, Quantization.NONE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "weights", "model.safetensors", safetensors({"a": ("F32", [10, 10], 400)}))
    put(tmp_path / "weights", "columns.txt", "a b")
    return tmp_path / "weights"


def test_a_folder_reaches_the_engine_without_what_could_run(folder):
    for name in ("old.bin", "old.pkl", "code.py", ".hidden.json", "README.md"):
        put(folder, name, "x")
    put(folder / "deeper", "more.json", "{}")
    put(folder / ".git", "config.txt", "")
    for source in ("mine:weights", "mine:./weights", f"mine:{folder}"):
        found = find(source)
        assert (found.source, found.engine, found.folder) == (f"mine:{folder}", "mine", folder)
        assert found.files == ["columns.txt", "deeper/more.json", "model.safetensors"]
        assert found.memory_bytes == 400


def test_a_file_reaches_the_engine_alone(folder):
    found = find("mine:weights/model.safetensors")
    assert (found.source, found.folder) == (f"mine:{folder}/model.safetensors", folder)
    assert found.files == ["model.safetensors"]


@pytest.mark.parametrize(
    "source", ["mine:", "mine:small?layers=2", "my.engine-2:a/b", "mine:thing:more", "m:org/name", "m:" + "x" * 300]
)
def test_other_words_are_the_engines_to_read(folder, source):
    assert find(source) == FoundModel(source, None, source.partition(":")[0], 0)


def test_a_home_that_nobody_has(folder):
    with pytest.raises(ModelRefused, match="there is no folder or file ~nobody-by-this-name"):
        find("mine:~nobody-by-this-name")


def test_a_fake_says_what_it_takes():
    assert find("fake:?memory=7") == FoundModel("fake:?memory=7", None, "fake", 7)
    for source in ("fake:?dimension=8", "fake:thing", "fake://x"):
        with pytest.raises(ModelRefused, match="dimensions"):
            find(source)


def test_pickles_are_never_taken(folder):
    put(folder, "old.pt", "x")
    (folder / "model.safetensors").unlink()
    for source in ("mine:weights", "mine:weights/old.pt"):
        with pytest.raises(ModelRefused, match=r"only as old\.pt: .*run any code.*safetensors\.torch\.save_file"):
            find(source)
    put(folder, "code.py", "x")
    with pytest.raises(ModelRefused, match=r"code\.py: an engine is given files that end in \.csv"):
        find("mine:weights/code.py")


def test_what_is_not_whole_is_refused(folder, tmp_path):
    put(folder, "model.safetensors", b"\x08")
    with pytest.raises(ModelRefused, match="cut short"):
        find("mine:weights")
    put(folder, "model.safetensors", safetensors({"a": ("F32", [1], 4)}))
    (folder / "link.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelRefused, match=r"link\.json is a link to a file that is gone"):
        find("mine:weights")
    Path("empty").mkdir()
    with pytest.raises(ModelRefused, match="holds no file that an engine is given"):
        find("mine:empty")


@pytest.mark.parametrize("thing", ["./gone", "../gone", "/gone/away", "~/gone/away"])
def test_a_path_that_leads_nowhere_is_no_word(folder, thing):
    with pytest.raises(ModelRefused, match=f"there is no folder or file {thing}"):
        find(f"mine:{thing}")


def test_sources_that_look_like_an_engines_are_explained(folder):
    with pytest.raises(ModelRefused, match="embed is a task; give the folder"):
        find("embed:weights")
    with pytest.raises(ModelRefused, match="is a URL: give a folder"):
        find("https://huggingface.co/org/name")


def test_a_folder_with_a_colon_in_its_name_is_written_as_a_path(folder):
    Path("a:b").mkdir()
    with pytest.raises(ModelRefused, match=r"config\.json is missing"):
        find("./a:b")
