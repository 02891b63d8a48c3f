"""What the scripts of peers share; it imports nothing that is not in every environment.

A script is run by the Python of its own environment, with a folder of weights and a file of texts (a JSON list). It
tries its settings on a sixteenth of the texts, computes all of them with the best one, and prints both as JSON. What it
has to start or to load, a few texts make it do beforehand.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Encode = Callable[[list[str]], int]
"""Computes vectors and says how many."""


def model_and_texts() -> tuple[str, list[str]]:
    """What the script was given."""
    return sys.argv[1], json.loads(Path(sys.argv[2]).read_text())


def report(settings: Iterable[tuple[str, Encode]], texts: list[str]) -> None:
    """Measure the best of the settings on all texts, and print it."""
    sample = texts[::16]
    best, encode, fastest = "", None, 0.0
    for name, candidate in settings:
        candidate(sample[:16])
        if (rate := _rate(candidate, sample)) > fastest:
            best, encode, fastest = name, candidate, rate
    assert encode is not None
    encode(sample[:16])
    print(json.dumps({"rate": _rate(encode, texts), "setting": best}))


def _rate(encode: Encode, texts: list[str]) -> float:
    begin = time.perf_counter()
    count = encode(texts)
    seconds = time.perf_counter() - begin
    if count != len(texts):
        raise AssertionError(f"{count} vectors of {len(texts)} texts")
    return len(texts) / seconds
