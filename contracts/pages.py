"""How the pages look that are made for people: one style, and plots that take its colours, light or dark."""

import re
from collections.abc import Mapping
from typing import Any

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --muted: #5d6573; --rule: #dde1e8;
  --first: #3558b8; --second: #9aa6bd; --good: #1a7f46; --bad: #b42318; --plain: #5d6573;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1b1f27; --ink: #e7eaf0; --muted: #a0a9b8; --rule: #343b48;
    --first: #86a8ff; --second: #6b778d; --good: #4cc38a; --bad: #ff8a7a; --plain: #a0a9b8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 56px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 10px; }
p { margin: 0 0 10px; }
.muted { color: var(--muted); }
.small { font-size: 0.87rem; }
.card {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px; margin-top: 16px;
}
.verdict { border-left: 6px solid var(--plain); display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; }
.verdict strong { font-size: 1.25rem; color: var(--plain); text-transform: capitalize; }
.verdict.good { border-left-color: var(--good); }
.verdict.good strong, .met { color: var(--good); }
.verdict.bad { border-left-color: var(--bad); }
.verdict.bad strong, .missed { color: var(--bad); }
.met, .missed { font-weight: 600; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 16px; margin-top: 16px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 18px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650; }
.plots {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 0 16px; align-items: start;
}
svg { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto; }
svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
thead th { white-space: normal; }
tbody tr:last-child td { border-bottom: 0; }
td { font-variant-numeric: tabular-nums; }
tr.this td { font-weight: 650; }
ul, ol { margin: 0; padding-left: 1.25rem; }
li + li { margin-top: 6px; }
ol > li + li { margin-top: 14px; }
code { font: 0.92em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 6px 0 0; font-size: 0.87rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 18px 10px 40px; } .card { padding: 14px 14px; } .tiles { gap: 10px; grid-template-columns: 1fr 1fr; }
  table { font-size: 0.84rem; } th, td { padding: 5px 6px; } td:first-child { min-width: 7rem; }
}
@media print { body { background: none; } .card, .tile { break-inside: avoid; } }
"""
"""The CSS of a page."""

INK, MUTED, RULE, FIRST, SECOND, CARD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
GOOD, BAD = "#070707", "#080808"
COLOURS = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    FIRST: "first",
    SECOND: "second",
    CARD: "card",
    GOOD: "good",
    BAD: "bad",
}
"""What stands in a plot for the page's colours of these names, which differ in the dark."""
PLOT_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}
"""Settings of matplotlib."""
DASHED = (0, (4, 3))
"""The line of a threshold."""


def shortened(text: str, longest: int = 30) -> str:
    """A label that leaves a plot some room."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def inline_svg(file: str, title: str) -> str:
    """An SVG file of matplotlib's as what stands inside of a page: without all that is for a file of its own.

    Args:
        file: Drawn with `PLOT_STYLE` in these colours.
        title: What it shows, for whoever cannot see it; plain words.
    """
    text = file[file.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg [^>]*?) ?width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) ?height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    for colour, name in COLOURS.items():
        text = re.sub(rf"\b(fill|stroke): ?{colour}", rf"\1: var(--{name})", text)
    return text
