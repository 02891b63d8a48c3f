"""Where the database is, as far as it can be told at once: nothing is started, asked or imported for it."""

import os
from pathlib import Path

import orjson

from contracts import tls
from stack.layout import Layout


def database_url() -> str | None:
    """The configured address, or the one that the embedded stack of this home wrote down; None where there is none."""
    if url := os.environ.get("BATCHMILL_DATABASE_URL"):
        return tls.database_url(url, os.environ.get("BATCHMILL_DATABASE_CA"))
    home = os.environ.get("BATCHMILL_HOME")
    state = Layout.of(Path(home) if home else Path.home() / ".batchmill").state_file
    try:
        return str(orjson.loads(state.read_bytes())["database_url"])
    except (OSError, KeyError, orjson.JSONDecodeError):
        return None
