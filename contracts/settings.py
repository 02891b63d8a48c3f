"""Settings: read once, at the entry point of a process, from `BATCHMILL_…` variables."""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.errors import ConfigurationError
from contracts.names import DEFAULT_POOL


class Settings(BaseSettings):
    """What a process of batchmill can be told; every field is also the variable `BATCHMILL_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="BATCHMILL_", frozen=True, extra="forbid")

    database_url: str | None = None
    """Postgres 18 or newer with pgvector, as `postgresql://user:password@host/name`."""
    broker_url: str | None = None
    """Redis, Valkey or RabbitMQ: `redis://…`, `rediss://…`, `redis+socket://…`, `amqp://…`, `amqps://…`."""
    artifacts: str | None = None
    """Where registered models' files live: a folder or any fsspec URL. `<home>/artifacts` by default."""
    home: Path = Field(default_factory=lambda: Path.home() / ".batchmill")
    """State of the embedded servers, logs, and what a worker has fetched."""

    pool: str = DEFAULT_POOL
    """The pool that a worker serves."""
    slots: int = Field(default=4, ge=2)
    """Shards that a worker holds at once; one of them is kept for interactive work."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes the first GPU where there is one."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for the model; all cores when not given."""
    model_memory: int | None = Field(default=None, ge=1)
    """Bytes that loaded models may take on the device; 60 % of its memory when not given."""

    ready_file: Path | None = None
    """A file that a worker makes when it consumes tickets, for whoever started it to see."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """A shard whose worker was not heard of for so long goes back to the queue."""
    tick_seconds: float = Field(default=5.0, gt=0)
    """How often beat sends a tick, and so how long a lost ticket can stay unnoticed."""
    ticket_window: int = Field(default=16, ge=1)
    """Tickets of one pool that may wait in the broker at once."""
    abandon_seconds: float = Field(default=3600.0, gt=0)
    """A submission that sent nothing for so long is taken for dead and removed."""

    @property
    def embedded(self) -> bool:
        """Whether the embedded stack serves this process: neither URL is set."""
        return self.database_url is None and self.broker_url is None

    @property
    def artifacts_url(self) -> str:
        """Where registered models' files live."""
        return self.artifacts or str(self.home / "artifacts")

    @property
    def cache(self) -> Path:
        """Where a worker keeps the files of the models that it has fetched."""
        return self.home / "cache"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with what is given here put over it.

    Raises:
        ConfigurationError: A value is wrong, or only one of the two URLs is set.
    """
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(f"BATCHMILL_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(problems) from None
    if (settings.database_url is None) != (settings.broker_url is None):
        missing = "BATCHMILL_BROKER_URL" if settings.broker_url is None else "BATCHMILL_DATABASE_URL"
        raise ConfigurationError(f"{missing} is not set: set both URLs, or neither for the embedded stack")
    return settings
