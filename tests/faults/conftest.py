"""Folders for worlds, and the ground that the small ones share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ground import Ground


def _short_path() -> Iterator[Path]:
    """A folder with a short path: sockets live below it."""
    made = Path(tempfile.mkdtemp(prefix="bm-faults-"))
    yield made
    if not os.environ.get("FAULTS_KEEP"):
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the test's own."""
    yield from _short_path()


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    """What worlds on Valkey stand on, one after the other: its servers are struck by none of them."""
    for made in _short_path():
        with Ground(made) as ground:
            yield ground
