import hashlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from uuid import UUID

import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from contracts.errors import InvalidRequest, SinkUnavailable
from contracts.names import Task
from contracts.sinks import FolderSink
from producer.writing import Writer, open_sink
from tests.results import JOB, Cut, Notes, StoredResults

ROWS = 57
PART = 20
OTHER = UUID("0199f0e4-8c00-7000-8000-000000000002")


def vectors(seed: int = 1, rows: int = ROWS) -> list[np.ndarray | None]:
    found = list(np.random.default_rng(seed).random((rows, 8), np.float32))
    found[5] = None  # type: ignore[call-overload]
    return found


def writer(url: object) -> Writer:
    return open_sink(FolderSink(url=str(url), rows_per_part=PART))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "_manifest.json").read_bytes())


def test_parts_of_exactly_so_many_rows_and_a_manifest_that_names_them(tmp_path: Path) -> None:
    results = StoredResults(vectors())
    notes = Notes()
    sink = writer(tmp_path / "out")
    sink.check(results.target.model, results.target.params)
    assert not (tmp_path / "out").exists()
    assert sink.write(results, None, notes) == ROWS
    assert [rows for _, rows in notes.kept] == [20, 40, 57]
    said = manifest(tmp_path / "out")
    assert (said["job"], said["model"], said["task"], said["rows"]) == (str(JOB), "model@3", "embed", ROWS)
    assert said["schema"][2] == {"name": "output", "type": "fixed_size_list<item: float>[8]", "nullable": True}
    assert [part["rows"] for part in said["parts"]] == [20, 20, 17]
    assert [part["file"] for part in said["parts"]] == [f"part-0000{n}-{JOB}.parquet" for n in range(3)]
    for part in said["parts"]:
        data = (tmp_path / "out" / part["file"]).read_bytes()
        assert (part["bytes"], part["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert pq.read_schema(tmp_path / "out" / part["file"]).equals(results.schema())
    table = pyarrow.dataset.dataset(tmp_path / "out", format="parquet").to_table().sort_by("position")
    assert table["position"].to_pylist() == list(range(ROWS))
    assert [v is None for v in table["output"].to_pylist()] == [n == 5 for n in range(ROWS)]
    assert sorted(os.listdir(tmp_path / "out")) == ["_manifest.json", *(part["file"] for part in said["parts"])]


@pytest.mark.parametrize("lost", [False, True], ids=["noted", "not-noted"])
@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_cut_and_resumed_it_is_as_if_written_at_once(tmp_path: Path, cut_after: int, lost: bool) -> None:
    results = StoredResults(vectors(), page=7)
    writer(tmp_path / "whole").write(results, None, Notes())
    cut = Notes(cut_after, before=lost)
    with pytest.raises(Cut):
        writer(tmp_path / "cut").write(results, None, cut)
    assert not (tmp_path / "cut" / "_manifest.json").exists()
    assert len(cut.kept) == cut_after - lost
    rest = Notes()
    assert writer(tmp_path / "cut").write(results, cut.last, rest) == ROWS
    assert len(rest.kept) == 3 - len(cut.kept)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_part_that_went_since_it_was_noted_is_written_again(tmp_path: Path) -> None:
    results = StoredResults(vectors())
    notes = Notes(3)
    with pytest.raises(Cut):
        writer(tmp_path / "out").write(results, None, notes)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / f"part-00001-{JOB}.parquet").unlink()
    rest = Notes()
    writer(tmp_path / "out").write(results, notes.last, rest)
    assert [rows for _, rows in rest.kept] == [40, 57]
    assert {name: digest for name, digest in contents(tmp_path / "out").items() if name in whole} == whole


def test_the_next_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    writer(tmp_path).write(StoredResults(vectors()), None, Notes())
    (tmp_path / "mine.parquet").write_bytes(b"of somebody")
    (tmp_path / f".part-00009-{JOB}.parquet.0a.partial").write_bytes(b"of a process that was killed")
    before = manifest(tmp_path)
    after = StoredResults(vectors(2, 25), job_id=OTHER)
    cut = Notes(1)
    with pytest.raises(Cut):
        writer(tmp_path).write(after, None, cut)
    assert manifest(tmp_path) == before
    for part in before["parts"]:  # what the manifest names stands until another takes its place
        data = (tmp_path / part["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == part["sha256"]
    writer(tmp_path).write(after, cut.last, Notes())
    assert manifest(tmp_path)["job"] == str(OTHER)
    parts = [part["file"] for part in manifest(tmp_path)["parts"]]
    assert sorted(os.listdir(tmp_path)) == ["_manifest.json", "mine.parquet", *parts]


def test_two_runs_at_once_do_not_end_in_a_mixture(tmp_path: Path) -> None:
    def disturb(written: dict, rows: int) -> None:
        if rows == ROWS:
            writer(tmp_path).write(StoredResults(vectors(2), job_id=OTHER), None, Notes())

    with pytest.raises(InvalidRequest, match=r"files of this run are gone: write no two runs there at once"):
        writer(tmp_path).write(StoredResults(vectors()), None, disturb)
    assert manifest(tmp_path)["job"] == str(OTHER)


def test_a_folder_at_a_url(tmp_path: Path) -> None:
    results = StoredResults([{"label": "a"}] * 45, Task.CLASSIFY)
    fs = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}/out"
    cut = Notes(2)
    with pytest.raises(Cut):
        writer(url).write(results, None, cut)
    writer(url).check(results.target.model, {})
    assert writer(url).write(results, cut.last, Notes()) == 45
    names = sorted(path.rpartition("/")[2] for path in fs.ls(f"/{tmp_path.name}/out", detail=False))
    assert names == ["_manifest.json", *(f"part-0000{n}-{JOB}.parquet" for n in range(3))]
    assert sorted(os.listdir(tmp_path)) == []
    fs.rm(f"/{tmp_path.name}", recursive=True)


def test_a_disk_that_takes_no_more_and_then_does(tmp_path: Path) -> None:
    results = StoredResults(list(np.random.default_rng(1).random((60, 512), np.float32)))
    notes = Notes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            SinkUnavailable, match=r"part-00000-.*\.parquet cannot be written: File too large; free some"
        ):
            writer(tmp_path).write(results, None, notes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []
    assert writer(tmp_path).write(results, notes.last, Notes()) == 60


def test_places_that_are_none(tmp_path: Path) -> None:
    model = StoredResults(vectors()).target.model
    (tmp_path / "file").write_text("")
    for url, message in {
        tmp_path / "file": "is a file: name a folder",
        tmp_path / "no" / "out": "there is no folder .*no; make it first",
        "strange://host/out": "choose another place, or install the package",
    }.items():
        with pytest.raises(InvalidRequest, match=message):
            writer(url).check(model, {})
    shutil.rmtree(tmp_path / "file", ignore_errors=True)
