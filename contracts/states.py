"""The states that jobs, shards, runs and deliveries pass through, and who may follow whom."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a submission stands; terminal states are left by no one."""

    RECEIVING = "receiving"
    """Items still arrive; nothing of it runs, and a client that dies here leaves nothing that counts."""
    QUEUED = "queued"
    """Sealed and accepted: it will end in a terminal state, whatever dies on the way."""
    RUNNING = "running"
    """At least one shard was claimed."""
    PAUSED = "paused"
    """Nobody claims its shards; what is leased is finished."""
    SUCCEEDED = "succeeded"
    """Every item has a result or an error of its own."""
    FAILED = "failed"
    """The job as a whole could not run; its error says why."""
    CANCELLED = "cancelled"
    """Its caller ended it; what was computed stays."""
    EXPIRED = "expired"
    """It was not done in time; what was computed stays."""

    @property
    def terminal(self) -> bool:
        """Whether the state is final."""
        return self in TERMINAL_JOB_STATES


TERMINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
CLAIMABLE_JOB_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})


class ShardState(StrEnum):
    """Where a unit of leasing stands."""

    QUEUED = "queued"
    """Claimable, once its `not_before` has passed."""
    LEASED = "leased"
    """Held by one process, under a token, until the lease expires."""
    DONE = "done"
    """Closed: each of its inputs has a result or an error."""
    CANCELLED = "cancelled"
    """Its job ended before it did."""
    SPLIT = "split"
    """Replaced by smaller shards."""


class RunState(StrEnum):
    """Where a run stands: rows of a source scored into a sink, once."""

    QUEUED = "queued"
    """Nobody has begun; a scheduled one may wait for the run before it."""
    READING = "reading"
    """The source is read into a job; its holder's lease protects it."""
    SCORING = "scoring"
    """The job stands; nobody holds the run until the job is terminal."""
    WRITING = "writing"
    """Results go to the sink; its holder's lease protects it."""
    SUCCEEDED = "succeeded"
    """The sink holds everything."""
    FAILED = "failed"
    """Its error says why."""
    CANCELLED = "cancelled"
    """Its caller ended it, or the schedule's next run did."""
    SKIPPED = "skipped"
    """It was due while another ran, or while nothing was there to run it."""

    @property
    def terminal(self) -> bool:
        """Whether the state is final."""
        return self in TERMINAL_RUN_STATES


TERMINAL_RUN_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED})


class DeliveryState(StrEnum):
    """Where a webhook event stands on its way to one URL."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Priority(StrEnum):
    """The class of a job: a higher one is always claimed first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def rank(self) -> int:
        """0 for the most urgent class; what the database sorts by."""
        return list(Priority).index(self)

    @classmethod
    def of_rank(cls, rank: int) -> "Priority":
        """The class of a rank that `rank` gave."""
        return list(cls)[rank]
