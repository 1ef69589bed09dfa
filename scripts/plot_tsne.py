"""The paper's figures 1 and 5: where exemplars lie among the images of their classes, and how near to the boundaries.

    python scripts/plot_tsne.py runs/random runs/herding runs/mnemonics --phases 0 5 --classes 5 --out tsne.png

A column per run, a row per phase: t-SNE of the features of the first classes. Light: training images; deep: exemplars;
a grey cross: mean feature of the exemplars of any other class. The table, and tsne.json, say how near to a class
boundary both are: the margin is the best minus the second-best output of the classifier, in units of its scale sigma
(for a cosine classifier the difference of two cosines). Exit status: 0 done, 2 something must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mnemonics.data.batches import rank_within_class
from mnemonics.data.scenario import Scenario
from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_json
from mnemonics.evaluation import class_means, features_of
from mnemonics.experiment.stored import Target, check_fit, open_run_folder
from mnemonics.models.layers import BiasCorrected
from mnemonics.reporting.figures import COLOURS, DPI, GREY, legend_below, save_figure
from mnemonics.reporting.read import run_names, writing
from mnemonics.reporting.tables import interval
from mnemonics.reporting.text import render_table

LARGEST = 30  # perplexity, as usual
EXPLANATION = """
margin = best minus second-best output of the classifier in units of its scale; mean +- half the width of its 95%
confidence interval over images; ratio of the two below 1: exemplars are nearer to a boundary than other images"""


class Points(NamedTuple):
    """Images in the space of features."""

    features: Tensor  # float [n, d]
    labels: Tensor  # int64 [n]
    margins: Tensor  # float [n]


class Panel(NamedTuple):
    """What is shown of a run after a phase."""

    images: Points
    exemplars: Points
    others: Tensor  # float [other classes, d], mean features of their exemplars
    class_names: list[str]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises UsageError for values that make no sense."""
    what = "t-SNE of exemplars among the images of their classes."
    parser = argparse.ArgumentParser(prog="plot_tsne.py", description=what, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders on the same classes, a column each")
    add("--phases", nargs="+", type=int, metavar="I", help="phases, a row each (first and last of the first run)")
    add("--classes", type=int, default=5, help="how many classes to show, the first ones (%(default)s)")
    add("--images_per_class", type=int, default=200, help="training images of each, the first ones (%(default)s)")
    add("--seed", type=int, default=0, help="of t-SNE (%(default)s)")
    add("--data_dir", help="folder of the data set (where the run had it)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    out = "the figure, PNG or PDF; the numbers go beside it as .json (%(default)s)"
    add("--out", type=Path, default=Path("tsne.png"), help=out)
    options = parser.parse_args(arguments)
    if not 2 <= options.classes <= len(COLOURS):
        raise UsageError(f"--classes {options.classes}: must be 2 to {len(COLOURS)}, a colour each")
    if options.images_per_class < 1:
        raise UsageError(f"--images_per_class {options.images_per_class}: must be at least 1")
    if options.out.suffix not in (".png", ".pdf"):
        raise UsageError(f"--out {options.out}: must end in .png or .pdf")
    return options


def opened(options: argparse.Namespace) -> list[tuple[Target, Scenario]]:
    """The runs with their data; fills in options.phases. Raises UsageError where one does not fit the command line or
    the others."""
    runs = []
    for path in options.runs:
        target, scenario = open_run_folder(path, options)
        options.phases = options.phases or sorted({min(target.files), max(target.files)})
        for phase in options.phases:
            if phase not in target.files:
                raise UsageError(f"--phases {phase}: {path} has no phase_{phase}.pt")
        if runs and (target.config.dataset, target.order) != (runs[0][0].config.dataset, runs[0][0].order):
            raise UsageError(f"{path}: other classes, or in another order, than {runs[0][0].path}")
        runs.append((target, scenario))
        first = scenario.protocol.phases[min(options.phases)].seen
        if options.classes > first:
            raise UsageError(f"--classes {options.classes}: after phase {min(options.phases)} there are only {first}")
    return runs


def measure(target: Target, scenario: Scenario, phase: int, options: argparse.Namespace) -> Panel:
    """Training images and exemplars of the first classes. Raises UsageError for a file that does not fit."""
    path, now, classes = target.files[phase], scenario.protocol.phases[phase], options.classes
    loaded = target.load(phase, path, scenario.device)
    check_fit(scenario, now, path, loaded)
    if loaded.exemplars is None:
        raise UsageError(f"{path}: holds no exemplars")
    model, prep, size = loaded.model, scenario.prep, scenario.config.eval_batch_size
    data = scenario.labelled(*scenario.source.train(scenario.protocol.order[:classes]))
    points = []
    for chosen in (
        data[rank_within_class(data.labels) < options.images_per_class],
        loaded.exemplars[loaded.exemplars.labels < classes],
    ):
        features = features_of(model, chosen.images, prep, size)
        points.append(Points(features, chosen.labels, margins_of(model.classifier, features)))
    means = class_means(model, loaded.exemplars, now.seen, prep, size)[classes:]
    return Panel(*points, means, [scenario.source.class_names[c] for c in scenario.protocol.order[:classes]])


@torch.no_grad()
def margins_of(classifier: nn.Module, features: Tensor) -> Tensor:
    """Best minus second-best output of the classifier, in units of its scale: float [n] of features [n, d]."""
    inner = classifier.classifier if isinstance(classifier, BiasCorrected) else classifier
    best = classifier(features).topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) / inner.sigma.abs()


def embedded(parts: Sequence[Tensor], seed: int) -> list[np.ndarray]:
    """t-SNE of the directions of all features [n, d] together: [n, 2] for each part."""
    from sklearn.manifold import TSNE  # takes a second to import

    points = F.normalize(torch.cat([part.double().cpu() for part in parts]), dim=1).numpy()
    perplexity = min(LARGEST, (len(points) - 1) / 3)
    flat = TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(points)
    return np.split(flat, np.cumsum([len(part) for part in parts])[:-1])


def plot_panel(axes: Axes, panel: Panel, seed: int) -> None:
    """Images, exemplars and the other classes."""
    images, exemplars, others = embedded([panel.images.features, panel.exemplars.features, panel.others], seed)
    colours = [[COLOURS[label] for label in points.labels.tolist()] for points in (panel.images, panel.exemplars)]
    axes.scatter(*images.T, c=colours[0], s=12, alpha=0.3, linewidths=0)
    axes.scatter(*exemplars.T, c=colours[1], s=34, edgecolors="black", linewidths=0.6, zorder=3)
    axes.scatter(*others.T, c=GREY, marker="x", s=40)
    axes.set(xticks=[], yticks=[])


def row_of(name: str, phase: int, panel: Panel) -> dict[str, Any]:
    """The margins of a panel as numbers: means with half the width of their 95% confidence intervals."""
    row = {"run": name, "phase": phase, "classes": panel.class_names}
    row |= {"images": len(panel.images.labels), "exemplars": len(panel.exemplars.labels)}
    for kind, points in (("images", panel.images), ("exemplars", panel.exemplars)):
        row[f"margin_of_{kind}"], row[f"margin_of_{kind}_ci95"] = interval(points.margins.tolist())
    return row | {"ratio": row["margin_of_exemplars"] / row["margin_of_images"]}


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The numbers as Markdown."""
    table = [["run", "phase", "images", "exemplars", "margin of images", "margin of exemplars", "ratio"]]
    for row in rows:
        kinds = ("margin_of_images", "margin_of_exemplars")
        margins = [f"{row[kind]:.4f} +- {row[f'{kind}_ci95'] or 0:.4f}" for kind in kinds]
        table.append([*(str(row[key]) for key in table[0][:4]), *margins, f"{row['ratio']:.2f}"])
    return render_table(table, "markdown")


def plot(options: argparse.Namespace, runs: list[tuple[Target, Scenario]]) -> tuple[Figure, list[dict]]:
    """The figure, and the row of each panel."""
    names, rows = run_names(options.runs), []
    size = (4.0 * len(runs), 4.0 * len(options.phases) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(options.phases), len(runs), squeeze=False)
    for line, phase in zip(grid, options.phases, strict=True):
        line[0].set_ylabel(f"phase {phase}", fontsize=10)
        for axes, name, run in zip(line, names, runs, strict=True):
            panel = measure(*run, phase, options)
            rows.append(row_of(name, phase, panel))
            plot_panel(axes, panel, options.seed)
            axes.set_xlabel(f"margin of exemplars / of images: {rows[-1]['ratio']:.2f}", fontsize=9)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=10, parse_math=False)
    dots = [grid[0, 0].scatter([], [], color=colour) for colour in COLOURS[: options.classes]]
    cross = grid[0, 0].scatter([], [], color=GREY, marker="x")
    legend_below(figure, [*dots, cross], [*panel.class_names, "other classes"], ncols=options.classes + 1)
    return figure, rows


@command("plot_tsne.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figure and the numbers."""
    options = parse_args(arguments)
    figure, rows = plot(options, opened(options))
    numbers = options.out.with_suffix(".json")
    with writing(options.out):
        save_figure(figure, options.out)
        write_json(numbers, rows)
    print(table_of(rows), EXPLANATION, f"written: {options.out}, {numbers}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
