"""Real texts that every machine has: the docstrings of the Python standard library."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SKIPPED = {"__pycache__", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])|\n\s*\n")


def stdlib_docstrings(count: int | None = None) -> list[str]:
    """The first docstrings of the standard library, or all of them (about 8,000), always in the same order."""
    found = list(islice(_docstrings(), count))
    if count is not None and len(found) < count:
        raise ValueError(f"{count} docstrings asked for, and the standard library has {len(found)}")
    return found


def sentences(count: int) -> list[str]:
    """The first distinct sentences of the docstrings, their white space made single."""
    found = list(islice(_sentences(), count))
    if len(found) < count:
        raise ValueError(f"{count} sentences asked for, and the standard library has {len(found)}")
    return found


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.intersection(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                # Old modules hold escapes that a parser of today warns of.
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # Files of lib2to3 that are Python 2 on purpose.
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield text


def _sentences() -> Iterator[str]:
    seen: set[str] = set()
    for text in _docstrings():
        for part in ENDS.split(text):
            sentence = " ".join(part.split())
            if sentence and sentence not in seen:
                seen.add(sentence)
                yield sentence
