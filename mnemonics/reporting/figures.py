"""Figures: curves, heat maps, confusion matrices and bars.

A `draw_` function draws on axes it is given, of a file or of a page (`svg.py`). All accuracies are in percent.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from mnemonics.engine.files import atomic_write
from mnemonics.reporting.text import Results, classifiers, percent

DPI = 100
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#999933")  # told apart by all
MARKERS = "osD^v"
INK, GREY, LINE = "#1b1f24", "#9aa1a9", "#d0d7de"  # text; what is there for comparison; grid
SHARES = LinearSegmentedColormap.from_list("shares", [(*to_rgb(COLOURS[0]), 0.0), (*to_rgb(COLOURS[0]), 1.0)])
STAGES = ("train", "exemplars", "finetune", "evaluate")  # of a phase, in the order of "seconds" in results.json
METRICS = {  # key of a phase -> (key of the summary, its words in a legend, label of the axis)
    "accuracy": ("average_accuracy", "average {}%", "accuracy on all classes seen (%)"),
    "phase0_accuracy": ("forgetting", "forgetting {} points", "accuracy on phase-0 classes (%)"),
}
FEW_CLASSES, FEW_PHASES = 20, 11  # up to here each is named, or its number written into its cell


@dataclass(frozen=True)
class Curve:
    """A line of a figure: y over x, and half the width of an interval around each y where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float] | None = None
    colour: str = COLOURS[0]
    marker: str = ""
    dashed: bool = False


def style_of(number: int) -> dict[str, str]:
    """Colour and marker of a curve: the first 40 are all different."""
    return {"colour": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


# curves


def measured_curves(runs: Sequence[tuple[str, Results]], metric: str = "accuracy") -> list[Curve]:
    """A metric of results.json against the number of classes seen. Several runs: the headline classifier of each. A
    single run: all its classifiers, those that are not the headline one dashed.

    Args:
        runs: (name, content of results.json) of each run.
        metric: a key of `METRICS`.
    """
    only = runs[0][1]
    chosen = [(f"{name}: {results['headline'].upper()}", results, results["headline"]) for name, results in runs]
    if len(runs) == 1:
        chosen = [(key.upper() + " (headline)" * (key == only["headline"]), only, key) for key in classifiers(only)]
    summary, words, _ = METRICS[metric]
    return [
        Curve(
            f"{label}, {words.format(percent(results['summary'][summary][key]))}",
            [phase["classes_seen"] for phase in results["phases"]],
            [phase[metric][key] for phase in results["phases"]],
            dashed=key != results["headline"],
            **style_of(i),
        )
        for i, (label, results, key) in enumerate(chosen)
    ]


def draw_curves(axes: Axes, curves: Sequence[Curve], ylabel: str) -> None:
    """Curves over the number of classes seen, without a legend."""
    for curve in curves:
        axes.plot(
            curve.x,
            curve.y,
            color=curve.colour,
            marker=curve.marker,
            linestyle="--" if curve.dashed else "-",
            linewidth=1.8,
            markersize=5,
        )
        if curve.half is not None:
            low, high = np.subtract(curve.y, curve.half), np.add(curve.y, curve.half)
            axes.fill_between(curve.x, low, high, color=curve.colour, alpha=0.2, linewidth=0)
    ticks = sorted({x for curve in curves for x in curve.x})
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    if len(ticks) <= FEW_PHASES:
        axes.set_xticks(ticks)
    axes.set(xlabel="number of classes seen", ylabel=ylabel)
    axes.grid(color=LINE, linewidth=0.6)


def legend_below(figure: FigureBase, axes: Axes, labels: Sequence[str]) -> None:
    """A legend of the lines of `axes` below the figure, where it hides none of them."""
    legend = figure.legend(axes.lines, labels, loc="outside lower center", fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in the name of a folder is a $


def plot_accuracy(runs: Sequence[tuple[str, Results]], path: str | Path) -> None:
    """Write a PNG of accuracy against the number of classes seen; see `measured_curves`."""
    curves = measured_curves(runs)
    labels = [textwrap.fill(curve.label, 88) for curve in curves]
    title = textwrap.fill(runs[0][0] if len(runs) == 1 else f"{len(runs)} runs, headline classifier of each", 88)
    # the figure grows with its legend, in both directions
    width = max(750, text_width(labels, 9) + 100, text_width([title], 10) + 40)
    figure = Figure(figsize=(width / DPI, 4.4 + 0.2 * "\n".join(labels).count("\n")), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    draw_curves(axes, curves, METRICS["accuracy"][2])
    figure.suptitle(title, fontsize=10, parse_math=False)
    legend_below(figure, axes, labels)
    save_figure(figure, path)


# what happened to each class, and how long it took


def shares_of_rows(counts: np.ndarray) -> np.ndarray:
    """Each row of non-negative [n, n] in percent of its sum; rows without any stay 0."""
    return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def draw_confusion(axes: Axes, counts: np.ndarray, starts: Sequence[int], names: Sequence[str]) -> AxesImage:
    """A confusion matrix: the share of each row, from 0 (the background) to 100 percent.

    Args:
        counts: int [n, n], rows true labels, columns predictions, both in class order.
        starts: first label of each phase; lines are drawn there.
        names: names of the labels, shown where there are few.
    """
    share = shares_of_rows(counts)
    image = axes.imshow(share, cmap=SHARES, vmin=0, vmax=100, interpolation="none", zorder=2)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=LINE, linewidth=0.6)
        axes.axvline(start - 0.5, color=LINE, linewidth=0.6)
    if len(names) <= FEW_CLASSES:
        short = [textwrap.shorten(name, 16, placeholder="...") or name[:16] for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), short, parse_math=False)
    axes.set(xlabel="predicted class, in class order", ylabel="true class, in class order")
    return image


def draw_origin(axes: Axes, by_phase: Sequence[Sequence[float]]) -> None:
    """Accuracy by phase of origin: row i shows, after phase i, the accuracy on the classes of each phase up to i."""
    count = len(by_phase)
    grid = np.full((count, count), np.nan)
    for row, percents in enumerate(by_phase):
        grid[row, : len(percents)] = percents
    axes.pcolormesh(grid, cmap=SHARES, vmin=0, vmax=100, edgecolors=LINE, linewidth=0.4)
    if count <= FEW_PHASES:
        for row, percents in enumerate(by_phase):
            for column, value in enumerate(percents):
                colour = "white" if value > 60 else INK
                axes.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    step = 1 if count <= FEW_PHASES else 5
    shown = range(0, count, step)
    axes.set_xticks([i + 0.5 for i in shown], shown)
    axes.set_yticks([i + 0.5 for i in shown], shown)
    axes.set(xlabel="classes that were new in phase", ylabel="after phase", aspect="equal")
    axes.invert_yaxis()


def draw_seconds(axes: Axes, phases: Sequence[dict[str, Any]]) -> None:
    """A bar for each phase, its stages on top of each other in the colours of `style_of`."""
    numbers, below = [phase["phase"] for phase in phases], np.zeros(len(phases))
    for i, stage in enumerate(STAGES):
        seconds = np.array([phase["seconds"].get(stage, 0.0) for phase in phases])
        axes.bar(numbers, seconds, bottom=below, color=COLOURS[i], width=0.7)
        below += seconds
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    if len(numbers) <= FEW_PHASES:
        axes.set_xticks(numbers)
    axes.set(xlabel="phase", ylabel="seconds")
    axes.grid(color=LINE, linewidth=0.6, axis="y")
    axes.set_axisbelow(True)


# files


def text_width(texts: Sequence[str], size: float) -> int:
    """Width in screen pixels of the widest text at this font size (points)."""
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [figure.text(0, 0, text, fontsize=size, parse_math=False) for text in texts]
    return max(int(np.ceil(text.get_window_extent(renderer).width)) for text in drawn)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as what the name of the file says (PNG, PDF): whole, or not at all, and without the date."""
    path, buffer = Path(path), io.BytesIO()
    kind = path.suffix.removeprefix(".").lower()
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    atomic_write(path, buffer.getvalue())
