"""Settings: read once, at the entry point of a process, from `BATCHMILL_…` variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts import tls
from contracts.callbacks import Network
from contracts.canonical import MAX_INPUT_BYTES, MAX_ITEM_BYTES
from contracts.errors import ConfigurationError
from contracts.names import DEFAULT_POOL


def _listed(value: object) -> object:
    """What a variable lists with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


MAX_DAYS = 36_500


class Settings(BaseSettings):
    """What a process of batchmill can be told; every field is also the variable `BATCHMILL_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="BATCHMILL_", frozen=True, extra="forbid")

    database_url: str | None = None
    """Postgres 18 or newer with pgvector, as `postgresql://user:password@host/name`."""
    broker_url: str | None = None
    """Redis, Valkey or RabbitMQ: `redis://…`, `rediss://…`, `redis+socket://…`, `amqp://…`, `amqps://…`."""
    database_ca: str | None = None
    """Whose certificates Postgres may show: a file, or `system`. With it, only verified TLS is spoken to Postgres."""
    broker_ca: str | None = None
    """Whose certificates a broker at `rediss://…` or `amqps://…` may show; what the system trusts when not given."""
    broker_certificate: Path | None = None
    """The certificate that the broker is shown, where it asks for one."""
    broker_key: Path | None = None
    """The key of that certificate, unless it is in the same file."""
    artifacts: str | None = None
    """Where registered models' files live: a folder or any fsspec URL. `<home>/artifacts` by default."""
    home: Path = Field(default_factory=lambda: Path.home() / ".batchmill")
    """State of the embedded servers, logs, and what a worker has fetched."""

    max_input_bytes: int = Field(default=MAX_INPUT_BYTES, ge=1, le=MAX_ITEM_BYTES)
    """What an input may take: a line of a file before it is parsed, and its canonical JSON."""

    pool: str = DEFAULT_POOL
    """The pool that a worker serves."""
    slots: int = Field(default=4, ge=2)
    """Shards that a worker holds at once; one of them is kept for interactive work."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes the first GPU where there is one, and for a model too large for it the
    others as well."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that compute, of all lanes together; all cores when not given."""
    lanes: int | None = Field(default=None, ge=1)
    """Passes of a model beside one another in a worker; when not given, as many as a measurement shows to pay."""
    model_memory: int | None = Field(default=None, ge=1)
    """Bytes that loaded models may take on the device; 60 % of its memory when not given. A larger model is laid over
    several devices, the last of them the disk."""

    log_format: Literal["console", "json"] = "console"
    """How programs log to stderr: lines for people, or one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that they log. Of libraries, only warnings and errors are logged."""
    metrics_port: int | None = Field(default=None, ge=0, le=65_531)
    """Where a worker, a runner, a deliverer or beat serves `/metrics`, `/healthz` and `/readyz`; nowhere when not
    given, any free port for 0. Under `batchmill up` this is the worker's; then come the deliverer's, beat's,
    the compressor's and the runner's."""
    metrics_host: str = "127.0.0.1"
    """The address that it listens on; `0.0.0.0` for all."""

    ready_file: Path | None = None
    """A file that a worker makes when it consumes tickets, for whoever started it to see."""

    lease_seconds: float = Field(default=60.0, gt=0)
    """A shard whose worker was not heard of for so long goes back to the queue."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """A worker whose device is busy with one forward pass for so long ends itself, and another takes over."""
    compression_step_seconds: float = Field(default=21_600.0, gt=0)
    """A step of a compression, or the evaluation behind the last one, that takes longer is ended, and its job fails."""
    tick_seconds: float = Field(default=5.0, gt=0)
    """How often beat sends a tick, and so how long a lost ticket can stay unnoticed."""
    ticket_window: int = Field(default=16, ge=1)
    """Tickets of one pool that may wait in the broker at once."""
    abandon_seconds: float = Field(default=3600.0, gt=0)
    """A submission that sent nothing for so long is taken for dead and removed."""
    retain_jobs_days: float = Field(default=90.0, ge=0, le=MAX_DAYS)
    """A job that ended so long ago is removed, once its webhooks are delivered; 0 keeps all."""
    retain_results_days: float = Field(default=365.0, ge=0, le=MAX_DAYS)
    """Results and inputs that no job refers to are removed when they are older; 0 keeps all."""
    purge_hours: float = Field(default=6.0, gt=0, le=24 * MAX_DAYS)
    """How often a tick removes what need not be kept."""

    secret_key: SecretStr | None = None
    """What webhook secrets are encrypted with: a Fernet key (32 bytes in base64), or several with commas between, of
    which the first encrypts. `<home>/secret.key` holds it when it is not set; the embedded stack makes that file."""
    webhook_retry_seconds: Annotated[tuple[Annotated[float, Field(ge=0)], ...], NoDecode, BeforeValidator(_listed)] = (
        *(5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0),
    )
    """How long to wait after each failed attempt at a webhook; after the last one it is dead."""
    webhook_timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    """How long one attempt may take, from the name's resolution to the end of the answer."""
    webhook_allow_networks: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Networks (`10.1.0.0/16`) that webhooks may go to though they are not public, also by plain http."""

    flower_port: int | None = Field(default=None, ge=0, le=65535)
    """Where the embedded stack serves Flower, on the loopback; 5555 or else a free port when not given; 0: nowhere."""
    flower_password: SecretStr | None = None
    """What Flower asks for, beside the user `batchmill`. The embedded stack makes one, in `<home>/flower.password`."""

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
    return settings.model_copy(update=_secured(settings))


def _secured(settings: Settings) -> dict[str, str]:
    """The URLs that are set, with what the settings say of TLS."""
    urls = {}
    named = (settings.database_ca, settings.broker_ca, settings.broker_certificate, settings.broker_key)
    if settings.embedded and any(named):
        raise ConfigurationError("certificates are set, and neither URL: the embedded servers speak no TLS")
    if settings.database_url is not None:
        urls["database_url"] = tls.database_url(settings.database_url, settings.database_ca)
    if settings.broker_url is not None:
        urls["broker_url"] = tls.broker_url(
            settings.broker_url, settings.broker_ca, settings.broker_certificate, settings.broker_key
        )
    return urls
