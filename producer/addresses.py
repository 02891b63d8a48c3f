"""Where the servers are: the two URLs of the settings, or the embedded stack, started when it does not run."""

import os
import subprocess
import sys

import orjson

from contracts.errors import StackError
from contracts.settings import Settings


def resolve(settings: Settings) -> Settings:
    """The settings with both URLs set.

    The stack is a layer above this one, so it is asked as a program.

    Raises:
        StackError: The embedded stack cannot be started.
    """
    if not settings.embedded:
        return settings
    # Safe path: a folder of the caller's may well hold a `stack` of its own.
    environment = {**os.environ, "BATCHMILL_HOME": str(settings.home), "PYTHONSAFEPATH": "1"}
    if settings.artifacts is not None:
        environment["BATCHMILL_ARTIFACTS"] = settings.artifacts
    found = subprocess.run([sys.executable, "-m", "stack.ensure"], env=environment, capture_output=True, check=False)
    if found.returncode != 0:
        raise StackError(found.stderr.decode(errors="replace").strip() or "the embedded stack does not start")
    return settings.model_copy(update=orjson.loads(found.stdout))
