"""Real texts that every machine has: the docstrings of the Python standard library, and of installed packages."""

import ast
import hashlib
import random
import re
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path

SKIPPED = {"__pycache__", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])|\n\s*\n")


def stdlib_docstrings(count: int | None = None) -> list[str]:
    """The first docstrings of the standard library, or all of them (about 8,000), always in the same order."""
    found = [text for _, text in islice(_standard(), count)]
    if count is not None and len(found) < count:
        raise ValueError(f"{count} docstrings asked for, and the standard library has {len(found)}")
    return found


def named_docstrings() -> list[tuple[str, str]]:
    """The same in the same order, each with a name of its own: `datetime.date.today`, and a number where it recurs."""
    found = []
    seen: Counter[str] = Counter()
    for name, text in _standard():
        seen[name] += 1
        found.append((name if seen[name] == 1 else f"{name}#{seen[name]}", text))
    return found


def sentences(count: int) -> list[str]:
    """The first distinct sentences of the docstrings, their white space made single."""
    found = list(islice(_sentences(), count))
    if len(found) < count:
        raise ValueError(f"{count} sentences asked for, and the standard library has {len(found)}")
    return found


def package_docstrings(package: str) -> Iterator[str]:
    """Docstrings of an installed package, from files all over it; always in the same order for one version."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{package} is not installed")
    root = Path(spec.origin).parent
    mixed = sorted(_files(root), key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())
    return (text for _, text in _of_files(root, mixed))


def mixed_docstrings(count: int) -> list[str]:
    """Distinct docstrings of the standard library, torch and transformers (about 30,000), drawn from them all."""
    found = {*stdlib_docstrings(), *package_docstrings("torch"), *package_docstrings("transformers")}
    return random.Random(0).sample(sorted(found), count)


class _Kept:
    """Docstrings with names that are read once, as far as they are asked for: to parse the files takes seconds."""

    def __init__(self, source: Iterator[tuple[str, str]]) -> None:
        self._source = source
        self._found: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for place in count():
            if place == len(self._found):
                self._found += islice(self._source, 1)
            if place == len(self._found):
                return
            yield self._found[place]


@cache
def _standard() -> _Kept:
    """Docstrings of the standard library with the qualified names of what they document."""
    root = Path(sysconfig.get_path("stdlib"))
    return _Kept(_of_files(root, sorted(_files(root))))


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))


def _of_files(root: Path, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        try:
            with warnings.catch_warnings():
                # Old modules hold escapes that a parser of today warns of.
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # Files of lib2to3 that are Python 2 on purpose.
        module = path.relative_to(root).with_suffix("")
        yield from _of_tree(tree, ".".join(module.parent.parts if module.name == "__init__" else module.parts))


def _of_tree(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Breadth first, like `ast.walk`."""
    todo: deque[tuple[str, ast.AST]] = deque([(module, tree)])
    while todo:
        name, node = todo.popleft()
        if isinstance(node, (ast.Module, *DEFINITIONS)) and (text := ast.get_docstring(node)):
            yield name, text
        for child in ast.iter_child_nodes(node):
            todo.append((f"{name}.{child.name}" if isinstance(child, DEFINITIONS) else name, child))


def _sentences() -> Iterator[str]:
    seen: set[str] = set()
    for _, text in _standard():
        for part in ENDS.split(text):
            sentence = " ".join(part.split())
            if sentence and sentence not in seen:
                seen.add(sentence)
                yield sentence
