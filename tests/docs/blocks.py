"""The fenced blocks of the documentation, as CommonMark sees them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
SHOWN = {"", "text"}
"""Languages of what is shown and cannot be run: outputs, drawings."""
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$", re.DOTALL)
_NONE_RUN = re.compile(r"^<!-- none is run: (.+?) -->$", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block that could be run."""

    page: str
    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str
    not_run: str | None
    """Why it is not run, where the page says so: `<!-- not run: … -->` directly above it, or for all blocks of a page
    `<!-- none is run: … -->` anywhere."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order; those that only show something are left out.

    Raises:
        AssertionError: A fence is not seen as one: it is indented, or in the content of something else.
    """
    name, text = str(page.relative_to(ROOT)), page.read_text()
    fences, above, none_run = 0, "", _NONE_RUN.search(text)
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            fences += 1
            language, reason = token.info.split(" ")[0], _NOT_RUN.search(above) or none_run
            if language not in SHOWN:
                assert token.map is not None
                yield Block(name, token.map[0] + 2, language, token.content, reason and " ".join(reason[1].split()))
        above = token.content if token.type == "html_block" else ""
    assert len(_FENCE.findall(text)) == 2 * fences, f"{name}: a fenced block is indented and would not be run"
