"""Plots of a run's report, as SVG that stands inside of its page and takes its colours."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from contracts.pages import BAD, DASHED, FIRST, MUTED, PLOT_STYLE, SECOND, inline_svg, shortened
from contracts.runs import RunInfo, Thresholds
from producer.drift.figures import label_counts

WIDTH, HEIGHT, TALL = 5.0, 2.6, 3.4
MOST_LABELS = 12
BINS = 40
TICKS = 6
FIGURES = {"psi": "PSI", "ks": "KS", "cosine": "cosine distance"}


def labels(before: Sequence[str], now: Sequence[str]) -> Markup:
    """Two bars a label: its share of the rows before and now; the rarest labels together in one."""
    names, first, second = label_counts(before, now)
    shares = [found / max(found.sum(), 1) * 100 for found in (first, second)]
    order = np.argsort(-(shares[0] + shares[1]), kind="stable")
    shown, rest = order[:MOST_LABELS], order[MOST_LABELS:]
    texts = [shortened(names[place]) for place in shown]
    values = [share[shown].tolist() for share in shares]
    if len(rest):
        texts.append(f"{len(rest)} others")
        values = [[*value, float(share[rest].sum())] for value, share in zip(values, shares, strict=True)]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        pairs = zip(values, (SECOND, FIRST), ("before", "now"), (-0.19, 0.19), strict=True)
        for value, colour, name, offset in pairs:
            if name == "before" and not before:
                continue
            bars = axis.barh([place + offset for place in range(len(texts))], value, 0.36, color=colour, label=name)
            axis.bar_label(bars, [f"{share:.1f} %" for share in value], padding=3, fontsize=8)
        axis.set_yticks(range(len(texts)), texts)
        axis.set_ylim(len(texts) - 0.4, -0.6)
        axis.set_xlim(0, 1.18 * max(max(value) for value in values))
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("share of the rows, %")
        _legend(axis)

    return _svg(draw, "Share of each label before and now", 1.0 + 0.42 * len(texts))


def numbers(before: NDArray[np.float64], now: NDArray[np.float64], what: str) -> Markup:
    """How often each number came: before as an area, now as a line; the outermost thousandths stand at the edges.

    Args:
        before: Of the sampled rows; may be empty.
        now: The same; not empty.
        what: The numbers are, in words.
    """
    every = np.concatenate((before, now))
    low, high = np.quantile(every, (0.001, 0.999))
    edges = np.histogram_bin_edges(np.clip(every, low, high), BINS)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for values, colour, name in ((before, SECOND, "before"), (now, FIRST, "now")):
            if len(values):
                found = np.histogram(np.clip(values, low, high), edges)[0] / len(values) * 100
                filled = name == "before"
                axis.stairs(found, edges, color=colour, fill=filled, linewidth=0 if filled else 1.8, label=name)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(what)
        axis.set_ylabel("% of the rows")
        _legend(axis)

    return _svg(draw, f"Distribution of the {what} before and now", HEIGHT)


def distances(found: NDArray[np.float64]) -> Markup:
    """How far embeddings moved that are others than before; not empty."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.hist(found, min(BINS, max(len(found) // 4, 8)), color=FIRST)
        axis.axvline(float(found.mean()), color=MUTED, linewidth=1, linestyle=DASHED, label="their mean")
        axis.set_xlim(left=0)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("cosine distance between before and now")
        axis.set_ylabel("rows")
        _legend(axis)

    return _svg(draw, "Cosine distances of the embeddings that changed", HEIGHT)


def history(runs: Sequence[RunInfo], thresholds: Thresholds) -> Markup:
    """Each figure of drift over runs, oldest first, a panel each; dashed, its threshold."""
    found: dict[str, list[float | None]] = {
        name: [None if run.drift is None else getattr(run.drift, name) for run in runs] for name in FIGURES
    }
    known = {name: values for name, values in found.items() if any(value is not None for value in values)}

    def draw(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(len(known), 1, sharex=True))
        for axis, (name, values) in zip(panels, known.items(), strict=True):
            places = [place for place, value in enumerate(values) if value is not None]
            heights = [value for value in values if value is not None]
            over = [bool(run.drift and name in run.drift.over) for run in runs]
            axis.plot(places, heights, color=FIRST, linewidth=1.4)
            axis.scatter(
                places,
                heights,
                s=22,
                color=[BAD if over[place] else FIRST for place in places],
                zorder=3,
                clip_on=False,
            )
            asked: float | None = getattr(thresholds, name)
            if asked is not None:
                axis.axhline(asked, color=MUTED, linewidth=1, linestyle=DASHED)
            axis.set_ylim(0, 1.15 * max([*heights, asked or 0.0]) or 1.0)
            axis.set_ylabel(FIGURES[name])
        _dates(panels[-1], runs)

    return _svg(draw, "Drift of each run against the one before it", TALL)


def work(runs: Sequence[RunInfo], seconds: Sequence[float | None]) -> Markup:
    """What each run computed, and how long it took, oldest first."""

    def draw(figure: Figure) -> None:
        computed, took = figure.subplots(2, 1, sharex=True)
        _bars(computed, [None if run.changes is None else run.changes.computed for run in runs], "inputs computed")
        _bars(took, seconds, "seconds")
        _dates(took, runs)

    return _svg(draw, "Inputs computed and seconds taken by each run", TALL)


def _bars(axis: Axes, values: Sequence[float | None], what: str) -> None:
    heights = [value or 0.0 for value in values]
    colours = [SECOND] * (len(values) - 1) + [FIRST]
    bars = axis.bar(range(len(values)), heights, 0.62, color=colours)
    texts = [
        "–" if value is None else f"{value:,.0f}" if value >= 10 or not value else f"{value:.2g}" for value in values
    ]
    axis.bar_label(bars, texts, padding=2, fontsize=8)
    axis.set_ylim(0, 1.25 * max(heights) or 1.0)
    axis.set_title(what, fontsize=9, color=MUTED, loc="left")
    axis.yaxis.set_visible(False)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)


def _dates(axis: Axes, runs: Sequence[RunInfo]) -> None:
    """When the runs were due, below as many of them as there is room for."""
    times = [run.due_at or run.created_at for run in runs]
    daily = len({time.date() for time in times}) == len(times)
    every = -(-len(runs) // (TICKS * 2 if daily else TICKS)) or 1
    places = list(range(len(runs) - 1, -1, -every))
    axis.set_xticks(places, [times[place].strftime("%m-%d" if daily else "%m-%d %H:%M") for place in places])
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.tick_params(axis="x", length=0)


def _legend(axis: Axes) -> None:
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, handlelength=1.2)


def _svg(draw: Callable[[Figure], None], title: str, height: float) -> Markup:
    """What is drawn; equal for equal input. The settings are those of this figure alone."""
    file = io.StringIO()
    # Ids are made of the salt and what they are for: those of two plots of one page must differ.
    settings: Any = {**mpl.rcParamsDefault, **PLOT_STYLE, "svg.hashsalt": title}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return Markup(inline_svg(file.getvalue(), title))
