"""What specs that callers write and the database keeps have in common."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.urls import shown


class Spec(BaseModel):
    """Frozen; what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without the passwords of URLs: a notebook shows what a program has."""
        for name, value in super().__repr_args__():
            yield name, shown(value) if isinstance(value, str) else value


def explain(error: ValidationError) -> str:
    """What is wrong with each field, in one line."""
    # Of a union pydantic names the member that it tried as well: the caller wrote that in `kind`.
    found = error.errors(include_url=False, include_context=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in found)
