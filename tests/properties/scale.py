"""How much: a part of the whole figure in an ordinary run, all of it where the environment asks for it."""

import os
import sys

from hypothesis import settings


def examples(short: float, long: float | None = None) -> int:
    """The examples of a property that is slower, or quicker, than others by so much: a share of the profile's."""
    base = settings.get_profile(settings.get_current_profile_name()).max_examples
    share = short if base <= 100 or long is None else long
    return max(int(base * share), 1)


def count(name: str, usual: int) -> int:
    """The number that the variable `BATCHMILL_<name>` sets, or the usual one."""
    return int(os.environ.get(f"BATCHMILL_{name}", usual))


def say(text: str) -> None:
    """Put a figure on the output, which `pytest -rP` shows."""
    sys.stdout.write(f"{text}\n")
