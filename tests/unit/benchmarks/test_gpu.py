import math
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.raw_device import repeated
from benchmarks.watching import Look, Watch, busy, parse, peak


def test_what_a_pair_leaves_is_divided_among_those_after_it() -> None:
    assert gpu.divided(400, 10).work == pytest.approx(40 * gpu.AT_WORK)
    assert gpu.divided(400, 10).limit == 80
    assert gpu.divided(390, 9).limit == pytest.approx(2 * 390 / 9)


def test_no_pair_runs_past_the_end() -> None:
    assert gpu.divided(30, 1).limit == 30
    assert gpu.divided(-5, 3).limit < gpu.LEAST


def test_as_many_inputs_as_the_time_has_room_for_within_bounds() -> None:
    assert gpu.sized(100, 5, 64) == 500
    assert gpu.sized(1, 5, 64) == gpu.sized(math.nan, 5, 64) == 64
    assert gpu.sized(1e9, 5, 64) == gpu.MOST


def test_texts_that_recur_are_made_distinct() -> None:
    assert gpu.distinct(["a", "b"], 5) == ["a", "b", "a 1", "b 1", "a 2"]


def test_rows_are_taken_from_all_of_them() -> None:
    assert repeated([*range(10)], 5) == [0, 2, 4, 6, 8]
    assert repeated([1, 2], 5) == [1, 2, 1, 2, 1]


def test_a_line_of_nvidia_smi_is_percent_and_mebibytes() -> None:
    assert parse("87, 1234") == Look(0.87, 1234 * 2**20)
    unknown = parse("[N/A], 5")
    assert math.isnan(unknown.busy)
    assert unknown.used == 5 * 2**20


def test_looks_that_tell_nothing_do_not_count() -> None:
    looks = [Look(0.5, 10), Look(math.nan, 30), Look(1.0, 20)]
    assert busy(looks) == 0.75
    assert peak(looks) == 20
    assert math.isnan(busy([]))
    assert math.isnan(peak([Look(1, math.nan)]))


def test_a_gpu_is_looked_at_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 40, 7\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with Watch("cuda:0") as watch:
        pass
    assert watch.looks[0] == Look(0.4, 7 * 2**20)


def test_a_pair_that_fails_says_so_in_its_row() -> None:
    row = gpu.Row("embed", raw={"rate": 10.0, "busy": 0.9, "weights": 1e6, "peak": 2e6})

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    assert gpu._tried(row, "path", broken) is None
    assert row.errors == ["path: RuntimeError: CUDA error: an illegal memory access"]
    assert gpu._cells(row) == ["10", "–", "–", "90%, –", "–", "1.0", "2, –"]
