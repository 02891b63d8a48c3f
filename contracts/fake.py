"""What the source of a fake model says: `fake:`, or `fake:?dimensions=384&delay=0.002&fail=text`."""

from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.errors import ModelRefused

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Word = Annotated[str, Field(min_length=1)]


class FakeSource(BaseModel):
    """How a fake model behaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(default=384, ge=1, le=16_000)
    """Floats of an embedding."""
    limit: int = Field(default=512, ge=1)
    """Tokens that an input may have; a token is four bytes of UTF-8."""
    memory: int = Field(default=1_000_000, ge=0)
    """Bytes that the model says it takes."""
    load_delay: Seconds = 0.0
    """Seconds that loading takes."""
    delay: Seconds = 0.0
    """Seconds that a forward pass takes."""
    item_delay: Seconds = 0.0
    """Seconds that a forward pass takes longer for each of its inputs."""
    fail: Word | None = None
    """An input that contains this text makes its forward pass raise."""
    nan: Word | None = None
    """An input that contains this text has an output that is no number."""
    kill: Word | None = None
    """An input that contains this text makes its forward pass end the process by SIGKILL."""
    segfault: Word | None = None
    """An input that contains this text makes its forward pass read from address 0."""
    hang: Word | None = None
    """An input that contains this text makes its forward pass last for ever."""
    oom: int | None = Field(default=None, ge=0)
    """A forward pass of more inputs than this runs out of memory."""
    oom_on: Word | None = None
    """An input that contains this text makes its forward pass run out of memory."""
    unloadable: bool = False
    """Whether it refuses to be loaded."""
    load_kill: bool = False
    """Whether loading it ends the process by SIGKILL."""


def parse_fake(source: str) -> FakeSource:
    """What the source of a fake model says.

    Raises:
        ModelRefused: It is not one, or a key or value is not known; the message names the keys.
    """
    known = ", ".join(FakeSource.model_fields)
    try:
        scheme, authority, path, query, fragment = urlsplit(source)
        if scheme != "fake" or authority or path or fragment:
            raise ModelRefused(f"source {source!r}: write fake: or fake:?key=value&key=value, with keys of {known}")
        return FakeSource.model_validate(dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))))
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
    except ValueError as error:
        problems = str(error)
    raise ModelRefused(f"source {source!r}: {problems} (a fake model takes {known})")
