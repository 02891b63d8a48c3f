"""`python -m stack`: the supervisor for the settings of the environment, in the foreground unless `--detach`."""

import logging
import sys

from contracts import logs
from contracts.errors import BatchmillError, ConfigurationError
from contracts.settings import load_settings
from stack.layout import Layout
from stack.programs import programs_of
from stack.supervisor import supervise


def upgrade_schema(database_url: str) -> None:
    """Bring the database up to date, and its roles."""
    from storage import roles, schema  # here: the fork comes before anything that may start threads

    schema.upgrade(database_url)
    roles.apply(database_url)


def main() -> int:
    """The exit code: 0 after an orderly end, 1 when the stack cannot run."""
    logs.configure()
    try:
        settings = load_settings()
        logs.configure(settings)
        if not settings.embedded:
            raise ConfigurationError("BATCHMILL_DATABASE_URL is set: those servers are not this stack's to run")
        supervise(
            Layout.of(settings.home),
            lambda addresses: programs_of(settings, addresses),
            upgrade_schema,
            detach="--detach" in sys.argv[1:],
        )
    except BatchmillError as error:
        logging.getLogger("stack").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
