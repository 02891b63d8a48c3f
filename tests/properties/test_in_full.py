"""All of it, at the counts that the docs state: the very tests of this folder, each file with more asked of it.

Their small twins are themselves, as `make test` runs them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ALL = {
    "HYPOTHESIS_PROFILE": "long",
    "BATCHMILL_FUZZ_SUBMISSIONS": "1000000",
    "BATCHMILL_JUNK_MESSAGES": "100000",
    "BATCHMILL_RACE_CLIENTS": "64",
    "BATCHMILL_RACE_INPUTS": "10000",
}
FILES = sorted(path.name for path in FOLDER.glob("test_*.py") if path != Path(__file__))


@pytest.mark.verify
@pytest.mark.parametrize("file", FILES)
def test_at_full_count(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "--timeout", "3000", str(FOLDER / file)]
    done = subprocess.run(command, env=ALL | os.environ, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:]
