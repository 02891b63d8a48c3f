import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.errors import ArtifactsUnavailable
from worker.compression.scratch import remove_stale, scratch


def test_one_process_at_a_time_and_its_subprocesses_count(tmp_path: Path) -> None:
    job_id = uuid4()
    with scratch(tmp_path, job_id) as first:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(first.lock,))
    with (
        pytest.raises(ArtifactsUnavailable, match="a process of this host that lost the job"),
        scratch(tmp_path, job_id),
    ):
        pass
    child.kill()
    child.wait()
    with scratch(tmp_path, job_id):
        pass


def test_a_destination_is_empty_and_what_a_step_keeps_stays(tmp_path: Path) -> None:
    with scratch(tmp_path, uuid4()) as place:
        (place.destination(1) / "half").touch()
        (place.of(1) / "checkpoint").touch()
        assert os.listdir(place.destination(1)) == []
        assert os.listdir(place.of(1)) == ["checkpoint"]
        place.done(1)
        assert os.listdir(place.of(1)) == []


def test_what_dead_jobs_left_is_removed_unless_somebody_works_there(tmp_path: Path) -> None:
    alive, dead, busy = uuid4(), uuid4(), uuid4()
    for job_id in (alive, dead):
        with scratch(tmp_path, job_id) as place:
            place.of(1)
    (tmp_path / "something else").mkdir()
    with scratch(tmp_path, busy):
        remove_stale(tmp_path, lambda found: {alive} & set(found))
        assert {path.name for path in tmp_path.iterdir()} == {str(alive), str(busy), "something else"}
    remove_stale(tmp_path / "nowhere", lambda found: found)
