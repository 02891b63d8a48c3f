r"""Every error of batchmill; each has a stable `code` and says whether trying again can help.

BatchmillError
├── ConfigurationError          a setting is missing or wrong
│   └── SchemaMismatch          the database is at another revision than this code
├── InvalidInput                an item that cannot be taken, with where it stands
│   ├── EmptyJob                no item at all
│   └── DuplicateCustomId       two items of one job under one id
├── InvalidRequest              a call that cannot be carried out as it stands
│   ├── UnknownModel
│   ├── UnknownTask
│   ├── InvalidParams
│   ├── DoesNotFit              a recipe that needs more memory or disk than there is
│   ├── JobNotFound
│   ├── RunNotFound
│   ├── UnknownSchedule
│   ├── WrongState              the job's state forbids it
│   ├── NothingToRetry          every item of the job has an output
│   ├── IdempotencyConflict     the key belongs to a job with other content
│   ├── RefusedUrl              a URL that no webhook is sent to
│   ├── UnknownEndpoint         no webhook endpoint of that URL, or it is disabled
│   └── DeliveryNotFound
├── ModelError
│   ├── ModelRefused            a source that is not safe or not complete
│   ├── ModelTooLarge           it does not fit into the worker's memory
│   └── ModelLoadFailed         the library could not load it
├── CompressionFailed           a step of a recipe, or what follows the last, could not be done
├── ArtifactError               files of a model are missing or not what was registered
├── UnavailableError            a server does not answer; try again
│   ├── DatabaseUnavailable
│   ├── DatabaseBusy            others hold what the call needs for itself
│   ├── BrokerUnavailable
│   ├── SinkUnavailable         what results are written to is full, or does not answer
│   └── ArtifactsUnavailable    the store or the cache of models cannot be used on this host now
├── StackError                  the embedded servers cannot start or stop
├── LeaseLost                   the shard, or the run, belongs to someone else by now
├── JobFailed                   the job ended without succeeding
│   ├── JobCancelled            somebody ended it
│   └── JobExpired              it was not done in its time
├── WaitTimeout                 the job was not done in the time given
├── WebhookVerificationError a request to a webhook that cannot be trusted
└── ItemFailed                  one input that the engine could not compute
"""

from typing import ClassVar


class BatchmillError(Exception):
    """The root of all errors that batchmill raises on purpose."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False


class ConfigurationError(BatchmillError):
    """A setting is missing or wrong."""

    code = "configuration"


class SchemaMismatch(ConfigurationError):
    """The database is at another schema revision than this code."""

    code = "schema_mismatch"


class InvalidInput(BatchmillError):
    """An item that cannot be taken as it is.

    Args:
        reason: What is wrong with it and what to do.
        where: What names it: `item 17`, or `reviews.jsonl, line 70123`; empty while the caller has yet to say.
    """

    code = "invalid_input"

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where

    def at(self, where: str) -> "InvalidInput":
        """The same error, naming where the item stands."""
        return type(self)(self.reason, where)


class EmptyJob(InvalidInput):
    """A submission without a single item."""

    code = "empty_job"


class DuplicateCustomId(InvalidInput):
    """Two items of one job carry the same id."""

    code = "duplicate_custom_id"


class InvalidRequest(BatchmillError):
    """A call that cannot be carried out as it stands."""

    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """No registered model has that name."""

    code = "unknown_model"


class UnknownTask(InvalidRequest):
    """No engine computes that task."""

    code = "unknown_task"


class InvalidParams(InvalidRequest):
    """The task has no such parameter, or the value is not one of its own."""

    code = "invalid_params"


class DoesNotFit(InvalidRequest):
    """A recipe needs more memory or disk than the workers that compress have."""

    code = "does_not_fit"


class JobNotFound(InvalidRequest):
    """No job has that id."""

    code = "job_not_found"


class RunNotFound(InvalidRequest):
    """No run has that id."""

    code = "run_not_found"


class UnknownSchedule(InvalidRequest):
    """No schedule has that name."""

    code = "unknown_schedule"


class WrongState(InvalidRequest):
    """The state of the job forbids the call."""

    code = "wrong_state"


class NothingToRetry(InvalidRequest):
    """Every item of the job has an output."""

    code = "nothing_to_retry"


class IdempotencyConflict(InvalidRequest):
    """The idempotency key belongs to a job with other content."""

    code = "idempotency_conflict"


class RefusedUrl(InvalidRequest):
    """A URL that no webhook is sent to."""

    code = "refused_url"


class UnknownEndpoint(InvalidRequest):
    """No webhook endpoint is registered for that URL, or it is disabled."""

    code = "unknown_endpoint"


class DeliveryNotFound(InvalidRequest):
    """No webhook delivery has that id."""

    code = "delivery_not_found"


class ModelError(BatchmillError):
    """A model that cannot be registered or run."""

    code = "model_error"


class ModelRefused(ModelError):
    """A source that is not safe to load or not complete."""

    code = "model_refused"


class ModelTooLarge(ModelError):
    """The model needs more memory than the worker may use for models."""

    code = "model_too_large"


class ModelLoadFailed(ModelError):
    """The library could not load the model."""

    code = "model_load_failed"


class CompressionFailed(BatchmillError):
    """A step of a recipe could not be done, or its result not be evaluated; the message names the step."""

    code = "compression_failed"


class ArtifactError(BatchmillError):
    """A model's files are missing, or are not the ones that were registered."""

    code = "artifact_error"


class UnavailableError(BatchmillError):
    """A server does not answer."""

    code = "unavailable"
    retryable = True


class DatabaseUnavailable(UnavailableError):
    """Postgres does not answer."""

    code = "database_unavailable"


class DatabaseBusy(UnavailableError):
    """Others hold what the call needs for itself."""

    code = "database_busy"


class BrokerUnavailable(UnavailableError):
    """The broker does not answer."""

    code = "broker_unavailable"


class SinkUnavailable(UnavailableError):
    """What results are written to is full, or does not answer; what was written stays, and writing goes on there."""

    code = "sink_unavailable"


class ArtifactsUnavailable(UnavailableError):
    """The artifact store, or a host's cache of it, cannot be read or written now: a full disk, a missing permission."""

    code = "artifacts_unavailable"


class StackError(BatchmillError):
    """The embedded servers cannot start or stop."""

    code = "stack_error"


class LeaseLost(BatchmillError):
    """The lease of the shard or the run has expired, and someone else may hold it."""

    code = "lease_lost"
    retryable = True


class JobFailed(BatchmillError):
    """The job ended without succeeding."""

    code = "job_failed"


class JobCancelled(JobFailed):
    """The job was cancelled; what was computed before can be read."""

    code = "job_cancelled"


class JobExpired(JobFailed):
    """The job was not done in its time; what was computed before can be read."""

    code = "job_expired"


class WaitTimeout(BatchmillError):
    """The job was not done in the time that the caller gave it."""

    code = "wait_timeout"
    retryable = True


class WebhookVerificationError(BatchmillError):
    """A request that does not come from whoever holds the webhook's secret, or not as it was sent, or not just now."""

    code = "webhook_verification"


class ItemFailed(BatchmillError):
    """One input that an engine could not compute; its neighbours are not touched.

    Args:
        item_code: A stable name of the cause, kept with the item: an `ItemCode`, or an engine's own.
        message: What happened, for a person; cut to 2,000 characters, and what Postgres holds no text of is replaced.
    """

    code = "item_failed"

    def __init__(self, item_code: str, message: str) -> None:
        message = message[:2000].replace("\0", "\ufffd").encode(errors="replace").decode()
        super().__init__(message)
        self.item_code = str(item_code)
        self.message = message


def describe(error: Exception) -> str:
    """An error of any library in one line: its type, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
