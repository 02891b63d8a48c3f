"""A quick look at names, for the completion of a command line: the driver alone, as SQLAlchemy takes long to import."""

from typing import Literal, TypeAlias

import psycopg

MOST = 50
_CONNECT_SECONDS, _STATEMENT_MILLISECONDS = 2, 500

What: TypeAlias = Literal["models", "versions", "jobs", "endpoints", "urls", "pools", "schedules"]

_QUERIES: dict[What, str] = {
    "models": """
        SELECT DISTINCT ON (name) name, concat(task, ', ', quantization) FROM models
        WHERE removed_at IS NULL AND starts_with(name, %(begin)s) ORDER BY name, version DESC LIMIT %(most)s""",
    "versions": """
        SELECT concat(name, '@', version) AS reference, concat(task, ', ', quantization) FROM models
        WHERE removed_at IS NULL AND starts_with(concat(name, '@', version), %(begin)s)
        ORDER BY name, version DESC LIMIT %(most)s""",
    "jobs": """
        SELECT newest.id::text, concat(newest.state, ', ', models.name, '@', models.version)
        FROM (SELECT id, state, target_id, created_at FROM jobs ORDER BY created_at DESC LIMIT 1000) AS newest
        JOIN targets ON targets.id = newest.target_id JOIN models ON models.id = targets.model_id
        WHERE starts_with(newest.id::text, %(begin)s) ORDER BY newest.created_at DESC LIMIT %(most)s""",
    "endpoints": """
        SELECT id::text, url FROM webhook_endpoints WHERE starts_with(id::text, %(begin)s)
        ORDER BY webhook_endpoints.id LIMIT %(most)s""",
    "urls": """
        SELECT url, '' FROM webhook_endpoints WHERE disabled_at IS NULL AND starts_with(url, %(begin)s)
        ORDER BY url LIMIT %(most)s""",
    "schedules": """
        SELECT name, concat(cron, ' ', timezone) FROM schedules WHERE starts_with(name, %(begin)s)
        ORDER BY name LIMIT %(most)s""",
    "pools": """
        SELECT DISTINCT pool, '' FROM models WHERE removed_at IS NULL AND starts_with(pool, %(begin)s)
        ORDER BY pool LIMIT %(most)s""",
}


def words(url: str, what: What, begin: str) -> list[tuple[str, str]]:
    """Names that begin so, each with what it means; URLs as they are registered, with what their queries hold.

    Raises:
        psycopg.Error: Postgres does not answer at once.
    """
    address = url.replace("postgresql+psycopg:", "postgresql:", 1)
    with psycopg.connect(address, connect_timeout=_CONNECT_SECONDS) as connection:
        connection.execute(f"SET LOCAL statement_timeout = {_STATEMENT_MILLISECONDS}".encode())
        rows = connection.execute(_QUERIES[what].encode(), {"begin": begin, "most": MOST})
        return [(name, about) for name, about in rows]
