import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import DoesNotFit
from contracts.names import COMPRESSION_POOL
from contracts.preflight import Need
from storage.workers import SeenWorker
from worker.compression.room import all_memory, check, free_memory
from worker.compression.supervision import Postponed


@pytest.mark.parametrize(
    ("memory", "disk", "message"),
    [
        (10**18, 0, r"1000000000\.0 GB of memory, and this host has \d+\.\d GB"),
        (0, 10**18, "writes about 1000000000.0 GB"),
    ],
)
def test_a_step_without_room_is_refused_with_both_numbers(memory: int, disk: int, message: str, tmp_path: Path) -> None:
    check([Need("step", 0, 0)], tmp_path)
    with pytest.raises(DoesNotFit, match=message):
        check([Need("step", memory, disk)], tmp_path)


def test_the_disk_is_looked_at_for_all_that_follows(tmp_path: Path) -> None:
    share = int(shutil.disk_usage(tmp_path).free * 0.6)
    ahead = [Need("prune", 0, share), Need("export", 10**18, share)]
    check(ahead[:1], tmp_path)
    with pytest.raises(DoesNotFit, match=r"it and what follows \(export is the last\) write about"):
        check(ahead, tmp_path)
    with pytest.raises(DoesNotFit, match="it writes about"):
        check(ahead[:1], tmp_path, missing=share)
    with pytest.raises(DoesNotFit, match="it writes about"):
        check([], tmp_path, missing=2 * share)


@pytest.mark.parametrize(
    ("memory", "disk", "left"), [(2**61, 2**61, True), (2**61, None, True), (2**61, 0, False), (0, 2**61, False)]
)
def test_what_fits_another_host_is_left_to_it(memory: int, disk: int | None, left: bool, tmp_path: Path) -> None:
    at = datetime.now(UTC)
    other = SeenWorker("other:1", COMPRESSION_POOL, "cpu", 1, 0, [], 0, memory, 0, 0, at, at, disk)
    for need in (Need("step", 10**18, 10**6), Need("step", 10**6, 10**18)):
        with pytest.raises(Postponed if left else DoesNotFit):
            check([need], tmp_path, hosts=[other])


def test_a_container_has_what_its_control_group_may_take(tmp_path: Path) -> None:
    machine = free_memory(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert free_memory(tmp_path) > 10**6
    assert machine > 10**6
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 400
    assert all_memory(tmp_path) == 1000
