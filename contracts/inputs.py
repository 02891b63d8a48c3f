"""What a task takes as an input."""

from typing import Any

from contracts.errors import InvalidInput
from contracts.fake import is_fake
from contracts.models import ModelSpec


def check_input(model: ModelSpec, value: Any) -> None:
    """Make sure that the model can take the value: a text; a fake model takes whatever is JSON.

    Raises:
        InvalidInput: It cannot.
    """
    if type(value) is not str and not is_fake(model.source):
        raise InvalidInput(f"expected a text, got {type(value).__name__}: {model.task} takes strings")
