"""Figures: curves, confusion matrices and grids of exemplars, as files, and as SVG inside a page.

A `plot_` function with `axes` plots on them, one with `path` writes a file. All accuracies are in percent.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mnemonics.engine.files import atomic_write
from mnemonics.reporting.paper import paper_number, place, same_protocol
from mnemonics.reporting.text import Results

DPI = 100
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#882255", "#999933")  # told apart by all
MARKERS = "osD^v"
INK, GREY, LINE = "#1b1f24", "#9aa1a9", "#d0d7de"  # text; what is there for comparison; grid
THEME = {INK: "ink", GREY: "grey", LINE: "line"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}  # report.css
SHARES = LinearSegmentedColormap.from_list("shares", [(*to_rgb(COLOURS[0]), 0.0), (*to_rgb(COLOURS[0]), 1.0)])
FEW_CLASSES = 20  # up to here each is named
# grids of exemplars
AMPLIFY, MAX_CLASSES, PER_CLASS = 5, 10, 5  # factor of the difference; rows and columns of a panel
TILE = 64  # side at which a small exemplar is shown, in screen pixels (rounded to a whole multiple of its own)
MARGIN, GAP, LETTER, TITLE_WIDTH = 12, 4, 10, 120  # in screen pixels
FRAME = 190  # grey level around an image, which may have white borders


# curves


@dataclass(frozen=True)
class Curve:
    """A line of a figure: y over x, and half the width of an interval around each y where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float] | None = None
    colour: str | None = None  # None: one of COLOURS, by its place among the curves
    dashed: bool = False


def paper_curves(runs: Sequence[Results]) -> list[Curve]:
    """The curves of the paper's figure 4 that belong to these runs, each once, where the protocol is the paper's."""
    found: dict[str, Curve] = {}
    for results in runs:
        percents = paper_number(results["config"], "figure4") if same_protocol(results) else None
        if percents is not None:
            row = place(results["config"], "figure4")[1]
            label = f"the paper's {row} (figure 4), average {np.mean(percents):.2f}%"
            seen = [phase["classes_seen"] for phase in results["phases"]]
            found.setdefault(row, Curve(label, seen, percents[: len(seen)], colour=GREY))
    return list(found.values())


def plot_curves(axes: Axes, curves: Sequence[Curve], metric: str = "accuracy") -> None:
    """Curves of a metric over the number of classes seen, without a legend. The first 40 look all different."""
    for i, curve in enumerate(curves):
        colour, marker = curve.colour or COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        line = "--" if curve.dashed else "-"
        axes.plot(curve.x, curve.y, line, color=colour, marker=marker, linewidth=1.8, markersize=5)
        if curve.half is not None:
            low, high = np.subtract(curve.y, curve.half), np.add(curve.y, curve.half)
            axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=(1, 2, 5, 10), integer=True))
    which = "all classes seen" if metric == "accuracy" else "phase-0 classes"
    axes.set(xlabel="number of classes seen", ylabel=f"accuracy on {which} (%)")
    axes.grid(color=LINE, linewidth=0.6)


def legend_below(figure: FigureBase, handles: Sequence[Artist], labels: Sequence[str], **look: Any) -> None:
    """A legend below the figure, where it hides nothing; `look` is for matplotlib."""
    look = {"fontsize": 9, "frameon": False, "labelcolor": INK} | look
    for text in figure.legend(handles, labels, loc="outside lower center", **look).get_texts():
        text.set_parse_math(False)  # a $ in the name of a folder is a $


# what happened to each class


def shortened(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:13]}..."


def plot_confusion(axes: Axes, counts: np.ndarray, starts: Sequence[int], names: Sequence[str]) -> AxesImage:
    """A confusion matrix: the share of each row, from 0 (the background) to 100 percent.

    Args:
        counts: int [n, n], rows true labels, columns predictions, both in class order.
        starts: first label of each phase; lines are drawn there.
        names: names of the labels, shown where there are few.
    """
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=100, interpolation="none", zorder=2)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=LINE, linewidth=0.6)
        axes.axvline(start - 0.5, color=LINE, linewidth=0.6)
    if len(names) <= FEW_CLASSES:
        axes.set_xticks(range(len(names)), map(shortened, names), rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), map(shortened, names), parse_math=False)
    axes.set(xlabel="predicted class, in class order", ylabel="true class, in class order")
    return image


# exemplars


def plot_exemplars(before: Tensor, after: Tensor, labels: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG of exemplars before and after they were optimised, in exact colours: a row per class (of many
    classes, evenly spaced ones), panels side by side.

    Args:
        before, after: uint8 [n, 3, H, W]. Where they are equal (real images) there is a single panel.
        labels: int64 [n], positions in the class order.
        class_names: the name of each label.
    """
    panels = {"exemplars": after}
    if not before.equal(after):
        change = 128 + AMPLIFY * (after.int() - before.int())  # signed: uint8 arithmetic would wrap around
        panels = {"before": before, "after": after, f"difference x{AMPLIFY}": change.clamp(0, 255).byte()}
    rows = rows_of_classes(labels)
    names, grids = [shortened(class_names[label]) for label in rows], [grid_of(p, rows) for p in panels.values()]
    left, step = 2 * MARGIN + LETTER * max(map(len, names)), max(grids[0].shape[1], TITLE_WIDTH) + 2 * MARGIN
    height = MARGIN + grids[0].shape[0]  # where the titles begin
    figure = Figure(figsize=((left + len(panels) * step) / DPI, (height + 2 * MARGIN) / DPI), dpi=DPI)
    look = {"transform": None, "fontsize": 10, "va": "center", "parse_math": False}  # None: places are screen pixels
    for i, (title, grid) in enumerate(zip(panels, grids, strict=True)):
        figure.figimage(grid, left + i * step, MARGIN)  # unlike imshow it resamples nothing
        figure.text(left + i * step + GAP, height + MARGIN, title, **look)
    for i, name in enumerate(names):
        y = height - (i + 0.5) * grids[0].shape[0] / len(names)
        figure.text(left - MARGIN, y, name, ha="right", **look)
    save_figure(figure, path)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` of the items, evenly spaced, with the first and the last one."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in places]


def shown_exemplars(labels: Tensor) -> Tensor:
    """int64 [m]: those of the exemplars with labels int64 [n] that `plot_exemplars` shows."""
    return torch.cat([*rows_of_classes(labels).values()])


def rows_of_classes(labels: Tensor) -> dict[int, Tensor]:
    """Which exemplars a grid shows: evenly spaced labels of those in `labels` (int64 [n]) -> int64 [<= PER_CLASS]."""
    chosen = evenly(labels.unique().tolist(), MAX_CLASSES)
    return {label: (labels == label).nonzero().flatten()[:PER_CLASS] for label in chosen}


def grid_of(images: Tensor, rows: dict[int, Tensor]) -> np.ndarray:
    """uint8 [n, 3, H, W] -> uint8 [h, w, 3]: the chosen images on white, each with a frame."""
    columns = max(map(len, rows.values()))
    framed = [F.pad(enlarged(images[chosen]), (1, 1, 1, 1), value=FRAME) for chosen in rows.values()]
    full = [F.pad(row, (0, 0) * 3 + (0, columns - len(row)), value=255) for row in framed]
    tiles = F.pad(torch.cat(full), (GAP, 0, GAP, 0), value=255).unflatten(0, (-1, columns))  # [rows, columns, 3, ...]
    grid = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return F.pad(grid, (0, 0) + (0, GAP) * 2, value=255).numpy()


def enlarged(images: Tensor) -> Tensor:
    """[n, 3, H, W] as large as they are shown: each pixel a square of screen pixels; large images are thinned out."""
    side = max(images.shape[2:])
    step, scale = -(-side // (2 * TILE)), max(1, round(TILE / side))
    return F.interpolate(images[:, :, ::step, ::step], scale_factor=scale)


# files


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as what the name of the file says (PNG, PDF): whole, or not at all, and without the date."""
    kind, buffer = Path(path).suffix[1:].lower(), io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata={"CreationDate": None} if kind == "pdf" else {})
    atomic_write(Path(path), buffer.getvalue())


# inside a page


def figure_for_page(height: float) -> tuple[Figure, Axes]:
    """A figure 4.8 inches wide, so that its letters can be read on a telephone."""
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=9, colors=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=INK)
    return figure, axes


def to_html(figure: Figure, name: str, caption: str) -> Markup:
    """The figure as a <figure> element with an SVG whose colours are those of the page; the same figure gives the same
    text.

    Args:
        name: different for each figure of a page, so that their ids are.
        caption: stands below it, and tells what it shows to those who do not see it.
    """
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "image.composite_image": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the letters are those of the browser
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r'<g id="[^"]*"', "<g", buffer.getvalue())  # nothing refers to them, and all figures have the same
    svg = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda c: f"var(--{THEME[c[0]]}, {c[0]})" if c[0] in THEME else c[0], svg)
    size = re.search(r'viewBox="[^"]*"', svg)[0]
    inside = Markup(svg[svg.index(">", svg.index("<svg")) + 1 :])
    element = '<figure>\n<svg role="img" aria-label="{0}" {1}>{2}\n<figcaption>{0}</figcaption>\n</figure>'
    return Markup(element).format(caption, Markup(size), inside)
