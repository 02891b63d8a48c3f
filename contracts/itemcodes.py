"""Why an item has no output: the codes that batchmill's own engines, its worker and its rescue give.

An engine of one's own may give others.
"""

from enum import StrEnum


class ItemCode(StrEnum):
    """What is kept with an item that failed; its value never changes, as it stands in the database and in files."""

    INVALID_INPUT = "invalid_input"
    """The engine cannot take the input: it is of another form than the task's, or has no token that the model knows."""
    TOO_LONG = "too_long"
    """It is longer than the model takes, and `truncate` is false; or a prompt leaves no room for `max_new_tokens`."""
    TOO_SHORT = "too_short"
    """A text to `score` has a single token, and the first is not scored."""
    NO_CHAT_TEMPLATE = "no_chat_template"
    """It is a chat, and the model has no template, or several and none of them the default."""
    CHAT_TEMPLATE_FAILED = "chat_template_failed"
    """The model's template refuses the chat, such as one in which roles do not alternate; the message is its own."""
    INVALID_PARAMS = "invalid_params"
    """The model cannot give what the parameters ask for: `ubinary` of vectors whose length eight does not divide."""
    NON_FINITE = "non_finite"
    """The output holds NaN or an infinity: the model, or its quantization, is at fault."""
    INVALID_OUTPUT = "invalid_output"
    """The engine gave nothing that can be stored, or another number of outputs than of inputs."""
    ENGINE_ERROR = "engine_error"
    """The engine raised; the message says what."""
    OUT_OF_MEMORY = "out_of_memory"
    """It does not fit into the device's memory, not even alone."""
    WORKER_LOST = "worker_lost"
    """It ended three workers, alone each time."""


ENGINE_FAULTS = frozenset(
    {
        ItemCode.NON_FINITE,
        ItemCode.INVALID_OUTPUT,
        ItemCode.ENGINE_ERROR,
        ItemCode.OUT_OF_MEMORY,
        ItemCode.WORKER_LOST,
    }
)
"""Causes that lie with the model or its engine; the others are the input's own, or its caller's."""
