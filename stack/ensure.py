"""`python -m stack.ensure`: start the embedded stack when it does not run, and print its addresses as JSON."""

import sys

import orjson

from contracts.errors import BatchmillError
from contracts.settings import load_settings
from stack.embedded import ensure


def main() -> int:
    """The exit code: 0 with one JSON object on stdout, or 1 with the reason on stderr."""
    try:
        addresses = ensure(load_settings())
    except BatchmillError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(orjson.dumps({"database_url": addresses.database_url, "broker_url": addresses.broker_url}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
