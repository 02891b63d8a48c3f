"""Plots for the documentation, drawn from what a benchmark has just measured."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path("docs/reference/plots")
COLOURS = ("#4051b5", "#e8833a", "#3a9e6f", "#a64d79")


def bars(name: str, title: str, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Horizontal bars side by side: for each panel (its title says the unit) a value for each label."""
    labels = list(next(iter(panels.values())))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels) + 1.2, 0.38 * len(labels) + 1.1), sharey=True, squeeze=False
    )
    for axis, (heading, values), colour in zip(axes[0], panels.items(), COLOURS, strict=False):
        drawn = axis.barh(labels, [values[label] for label in labels], color=colour, height=0.62)
        axis.bar_label(drawn, fmt=_figure, padding=3, fontsize=8)
        axis.set_title(heading, fontsize=9, loc="left")
        axis.set_xlim(0, 1.22 * max(values.values()))
        axis.tick_params(labelsize=8, length=0)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    FOLDER.mkdir(parents=True, exist_ok=True)
    # PNG on white: it is legible on a dark page as well.
    figure.savefig(FOLDER / f"{name}.png", dpi=160, facecolor="white")
    plt.close(figure)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(name: str, title: str, x: str, y: str, series: Mapping[str, Mapping[int, float]]) -> None:
    """A line for each series, over a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for (label, points), colour in zip(series.items(), COLOURS, strict=False):
        axis.plot(list(points), list(points.values()), marker="o", color=colour, label=label)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(title, fontsize=10, loc="left")
    figure.tight_layout()
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=160, facecolor="white")
    plt.close(figure)
