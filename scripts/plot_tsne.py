"""The paper's figures 1 and 5: where exemplars lie among the images of their classes, and how near to the boundaries.

    python scripts/plot_tsne.py runs/random runs/herding runs/mnemonics --phases 0 5 --classes 5 --out tsne.png

A column per run, a row per phase: t-SNE of the features of the first classes. Light: training images; deep: exemplars;
a grey cross: mean feature of the exemplars of any other class. The numbers, printed and in tsne.json, are margins to
class boundaries. Exit status: 0 done, 2 something must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mnemonics.data.image_source import rank_within_class
from mnemonics.data.scenario import Scenario
from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_json
from mnemonics.evaluation import class_means, features_of
from mnemonics.experiment.stored import Target, check_fit, own_target, scenario_of
from mnemonics.models.layers import BiasCorrected
from mnemonics.reporting.figures import COLOURS, DPI, GREY, legend_below, save_figure
from mnemonics.reporting.read import run_names, writing
from mnemonics.reporting.tables import interval
from mnemonics.reporting.text import render_table, with_header

Run = tuple[Target, Scenario]
Points = tuple[Tensor, Tensor, Tensor]  # features, float [n, d]; labels, int64 [n]; margins, float [n]
EXPLANATION = """
margin = best minus second-best output of the classifier in units of its scale, mean over images; ci95 = half the width
of its 95% confidence interval; ratio of the margins below 1: exemplars are nearer to a boundary than other images"""


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises UsageError for values that make no sense."""
    parser = argparse.ArgumentParser(prog="plot_tsne.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders on the same classes, a column each")
    add("--phases", nargs="+", type=int, metavar="I", help="phases, a row each (first and last of the first run)")
    add("--classes", type=int, default=5, help="how many classes to show, the first ones (%(default)s)")
    add("--images_per_class", type=int, default=200, help="training images of each, the first ones (%(default)s)")
    add("--data_dir", help="folder of the data set (where the run had it)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    add("--out", type=Path, default=Path("tsne.png"), help="PNG or PDF; numbers go beside it, as .json (%(default)s)")
    options = parser.parse_args(arguments)
    if not 2 <= options.classes <= len(COLOURS):
        raise UsageError(f"--classes {options.classes}: must be 2 to {len(COLOURS)}, a colour each")
    if options.images_per_class < 1:
        raise UsageError(f"--images_per_class {options.images_per_class}: must be at least 1")
    if options.out.suffix not in (".png", ".pdf"):
        raise UsageError(f"--out {options.out}: must end in .png or .pdf")
    return options


def opened(options: argparse.Namespace) -> list[Run]:
    """The runs with their data; fills in options.phases. Raises UsageError where one does not fit the command line or
    the others."""
    runs = [(target, scenario_of(target)) for target in (own_target(path, options) for path in options.runs)]
    first, names = runs[0][0], runs[0][1].names_of_labels
    options.phases = options.phases or sorted({min(first.files), max(first.files)})
    for target, scenario in runs:
        if missing := set(options.phases) - target.files.keys():
            raise UsageError(f"--phases {min(missing)}: {target.path} has no phase_{min(missing)}.pt")
        if (target.config.dataset, scenario.names_of_labels) != (first.config.dataset, names):
            raise UsageError(f"{target.path}: other classes, or in another order, than {first.path}")
        now = scenario.protocol.phases[min(options.phases)]
        if options.classes > now.seen:
            raise UsageError(f"--classes {options.classes}: after phase {now.index} there are only {now.seen}")
    return runs


def measure(run: Run, phase: int, options: argparse.Namespace) -> tuple[dict[str, Points], Tensor]:
    """Training "images" of the first classes and their "exemplars"; and the mean feature of the exemplars of each other
    class. Raises UsageError for a file that does not fit."""
    (target, scenario), classes, found = run, options.classes, {}
    path, now = target.files[phase], scenario.protocol.phases[phase]
    loaded = target.load(phase, path, scenario.device)
    check_fit(scenario, now, path, loaded)
    if loaded.exemplars is None:
        raise UsageError(f"{path}: holds no exemplars")
    model, rest = loaded.model, (scenario.prep, scenario.config.eval_batch_size)
    images = scenario.labelled(*scenario.source.train(scenario.protocol.order[:classes]))
    images = images[rank_within_class(images.labels) < options.images_per_class]
    for kind, data in (("images", images), ("exemplars", loaded.exemplars[loaded.exemplars.labels < classes])):
        features = features_of(model, data.images, *rest)
        found[kind] = features, data.labels, margins_of(model.classifier, features)
    return found, class_means(model, loaded.exemplars, now.seen, *rest)[classes:]


@torch.no_grad()
def margins_of(classifier: nn.Module, features: Tensor) -> Tensor:
    """Best minus second-best output of the classifier, in units of its scale: float [n] of features [n, d]."""
    inner = classifier.classifier if isinstance(classifier, BiasCorrected) else classifier
    best = classifier(features).topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) / inner.sigma.abs()


def embedded(parts: Sequence[Tensor]) -> list[np.ndarray]:
    """t-SNE of the directions of all features [n, d] together: [n, 2] for each part."""
    from sklearn.manifold import TSNE  # takes a second to import

    points = F.normalize(torch.cat([part.double().cpu() for part in parts]), dim=1).numpy()
    perplexity = min(30, (len(points) - 1) / 3)  # 30 is usual, more than this is not possible
    flat = TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(points)
    return np.split(flat, np.cumsum([len(part) for part in parts])[:-1])


def plot_panel(axes: Axes, found: dict[str, Points], others: Tensor) -> None:
    """Images, exemplars and the other classes."""
    looks = ({"s": 12, "alpha": 0.3, "linewidths": 0}, {"s": 34, "edgecolors": "black", "linewidths": 0.6})
    *places, of_others = embedded([*(features for features, _, _ in found.values()), others])
    for (_, labels, _), place, look in zip(found.values(), places, looks, strict=True):
        axes.scatter(*place.T, c=[COLOURS[label] for label in labels.tolist()], **look)
    axes.scatter(*of_others.T, c=GREY, marker="x", s=40)
    axes.set(xticks=[], yticks=[])


def plot(options: argparse.Namespace, runs: list[Run]) -> tuple[Figure, list[dict[str, Any]]]:
    """The figure, and the row of each panel."""
    names, rows = run_names(options.runs), []
    size = (4.0 * len(runs), 4.0 * len(options.phases) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(options.phases), len(runs), squeeze=False)
    for (i, phase), (j, name) in product(enumerate(options.phases), enumerate(names)):
        found, others = measure(runs[j], phase, options)
        plot_panel(grid[i, j], found, others)
        row: dict[str, Any] = {"run": name, "phase": phase}
        for kind, (_, labels, margins) in found.items():
            mean, half = interval(margins.tolist())
            row |= {kind: len(labels), f"margin_of_{kind}": mean, f"margin_of_{kind}_ci95": half}
        rows.append(row | {"ratio": row["margin_of_exemplars"] / row["margin_of_images"]})
        grid[i, j].set_xlabel(f"margin of exemplars / of images: {rows[-1]['ratio']:.2f}", fontsize=9)
        grid[i, 0].set_ylabel(f"phase {phase}", fontsize=10)
        grid[0, j].set_title(name, fontsize=10, parse_math=False)
    dots = [grid[0, 0].scatter([], [], color=colour) for colour in COLOURS[: options.classes]]
    cross = grid[0, 0].scatter([], [], color=GREY, marker="x")
    labels = [*runs[0][1].names_of_labels[: options.classes], "other classes"]
    legend_below(figure, [*dots, cross], labels, ncols=options.classes + 1)
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
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in with_header(rows)]
    print(render_table(cells, "markdown"), EXPLANATION, f"written: {options.out}, {numbers}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
