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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from eval.evaluate import check_fit, experiment_of
from mnemonics.data.batches import rank_within_class
from mnemonics.engine.errors import UsageError
from mnemonics.engine.files import write_json
from mnemonics.evaluation import class_means, features_of
from mnemonics.experiment.state import Experiment
from mnemonics.experiment.stored import FIXED, Target, own_target
from mnemonics.models.layers import BiasCorrected
from mnemonics.reporting.figures import COLOURS, DPI, GREY, save_figure
from mnemonics.reporting.read import run_names
from mnemonics.reporting.tables import interval, markdown

LARGEST = 30  # perplexity, as usual
EXPLANATION = (
    "margin = best minus second-best output of the classifier in units of its scale; mean +- half the width of its 95%",
    "confidence interval over images; ratio of the two below 1: exemplars are nearer to a boundary than other images",
)


@dataclass(frozen=True)
class Measured:
    """What one panel shows: features float [n, d] with labels int64 [n], margins float [n]."""

    data: Tensor
    data_labels: Tensor
    data_margins: Tensor
    exemplars: Tensor
    exemplar_labels: Tensor
    exemplar_margins: Tensor
    others: Tensor  # float [other classes, d], mean features of their exemplars
    class_names: list[str]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="plot_tsne.py", description="t-SNE of exemplars among the images of their classes.", allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders on the same classes, a column each")
    add("--phases", nargs="+", type=int, metavar="I", help="phases, a row each (first and last of the first run)")
    add("--classes", type=int, default=5, help="how many classes to show, the first ones (%(default)s)")
    add("--images_per_class", type=int, default=200, help="training images of each, the first ones (%(default)s)")
    add("--seed", type=int, default=0, help="of t-SNE (%(default)s)")
    add("--data_dir", help="folder of the data set (where the run had it)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    add("--out", type=Path, default=Path("tsne.png"), help="the figure, PNG or PDF; the numbers go beside it as .json "
        "(%(default)s)")  # fmt: skip
    return parser.parse_args(arguments)


def opened(options: argparse.Namespace) -> list[tuple[Target, Experiment]]:
    """The runs with their data. Raises UsageError where one does not fit the command line or the others."""
    if not 2 <= options.classes <= len(COLOURS):
        raise UsageError(f"--classes {options.classes}: must be 2 to {len(COLOURS)}, a colour each")
    if options.images_per_class < 1:
        raise UsageError(f"--images_per_class {options.images_per_class}: must be at least 1")
    if options.out.suffix not in (".png", ".pdf"):
        raise UsageError(f"--out {options.out}: must end in .png or .pdf")
    runs = []
    for path in options.runs:
        if not any(path.glob("phase_*.pt")):
            raise UsageError(f"{path}: holds no phase_<i>.pt; give the folder of a run")
        given = vars(options) | dict.fromkeys(FIXED) | {"eval_batch_size": None, "ncm": False}
        target = own_target(path, argparse.Namespace(**given))
        options.phases = options.phases or sorted({min(target.files), max(target.files)})
        for phase in options.phases:
            if phase not in target.files:
                raise UsageError(f"--phases {phase}: {path} has no phase_{phase}.pt")
        if runs and (target.config.dataset, target.order) != (runs[0][0].config.dataset, runs[0][0].order):
            raise UsageError(f"{path}: other classes, or in another order, than {runs[0][0].path}")
        runs.append((target, experiment_of(target, options.out)[0]))
        first = runs[-1][1].protocol.phases[min(options.phases)].seen
        if options.classes > first:
            raise UsageError(f"--classes {options.classes}: after phase {min(options.phases)} there are only {first}")
    return runs


def measure(target: Target, experiment: Experiment, phase: int, classes: int, images_per_class: int) -> Measured:
    """Features and margins of training images and exemplars of the first classes. Raises UsageError."""
    path, now = target.files[phase], experiment.protocol.phases[phase]
    loaded = target.load(phase, path, experiment.device)
    check_fit(experiment, now, path, loaded)
    if loaded.exemplars is None:
        raise UsageError(f"{path}: holds no exemplars")
    model, prep, size = loaded.model, experiment.prep, experiment.config.eval_batch_size
    data = experiment.labelled(*experiment.source.train(experiment.protocol.order[:classes]))
    data = data[rank_within_class(data.labels) < images_per_class]
    exemplars = loaded.exemplars[loaded.exemplars.labels < classes]
    features = [features_of(model, images.images, prep, size) for images in (data, exemplars)]
    means = class_means(model, loaded.exemplars, now.seen, prep, size)[classes:]
    names = [experiment.source.class_names[c] for c in experiment.protocol.order[:classes]]
    (d, e), margins = features, [margins_of(model.classifier, f) for f in features]
    return Measured(d, data.labels, margins[0], e, exemplars.labels, margins[1], means, names)


@torch.no_grad()
def margins_of(classifier: nn.Module, features: Tensor) -> Tensor:
    """Best minus second-best output of the classifier, in units of its scale: float [n] of features [n, d]."""
    inner = classifier.classifier if isinstance(classifier, BiasCorrected) else classifier
    best = classifier(features).topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) / inner.sigma.abs()


def embedded(found: Measured, seed: int) -> list[np.ndarray]:
    """t-SNE of the directions of all features of a panel: [n, 2] of the data, the exemplars and the other classes."""
    from sklearn.manifold import TSNE  # takes a second to import

    parts = [found.data, found.exemplars, found.others]
    points = F.normalize(torch.cat([part.double().cpu() for part in parts]), dim=1).numpy()
    perplexity = min(LARGEST, (len(points) - 1) / 3)
    flat = TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(points)
    return np.split(flat, np.cumsum([len(part) for part in parts])[:-1])


def draw(axes: Axes, found: Measured, seed: int) -> None:
    data, exemplars, others = embedded(found, seed)
    for points, labels, look in (
        (data, found.data_labels, {"s": 12, "alpha": 0.3, "linewidths": 0}),
        (exemplars, found.exemplar_labels, {"s": 34, "edgecolors": "black", "linewidths": 0.6, "zorder": 3}),
    ):
        axes.scatter(*points.T, c=[COLOURS[label] for label in labels.tolist()], **look)
    axes.scatter(*others.T, c=GREY, marker="x", s=40)
    axes.set(xticks=[], yticks=[])


def row_of(name: str, phase: int, found: Measured) -> dict[str, Any]:
    """The margins of a panel as numbers: means with half the width of their 95% confidence intervals."""
    (data, data_half), (exemplars, half) = (interval(m.tolist()) for m in (found.data_margins, found.exemplar_margins))
    return {
        "run": name,
        "phase": phase,
        "classes": found.class_names,
        "images": len(found.data),
        "exemplars": len(found.exemplars),
        "margin_of_images": data,
        "margin_of_images_ci95": data_half,
        "margin_of_exemplars": exemplars,
        "margin_of_exemplars_ci95": half,
        "ratio": exemplars / data,
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    header = ["run", "phase", "images", "exemplars", "margin of images", "margin of exemplars", "ratio"]
    cells = [
        [
            *(str(row[key]) for key in ("run", "phase", "images", "exemplars")),
            *(
                f"{row[key]:.4f} +- {row[f'{key}_ci95'] or 0:.4f}"
                for key in ("margin_of_images", "margin_of_exemplars")
            ),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return markdown([header, *cells])


def figure_of(options: argparse.Namespace, runs: list[tuple[Target, Experiment]]) -> tuple[Figure, list[dict]]:
    names, phases, rows = run_names(options.runs), options.phases, []
    size = (4.0 * len(runs), 4.0 * len(phases) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(phases), len(runs), squeeze=False)
    for r, phase in enumerate(phases):
        for c, (name, (target, experiment)) in enumerate(zip(names, runs, strict=True)):
            found = measure(target, experiment, phase, options.classes, options.images_per_class)
            rows.append(row_of(name, phase, found))
            draw(grid[r, c], found, options.seed)
            grid[r, c].set_xlabel(f"margin of exemplars / of images: {rows[-1]['ratio']:.2f}", fontsize=9)
            if r == 0:
                grid[r, c].set_title(name, fontsize=10, parse_math=False)
            if c == 0:
                grid[r, c].set_ylabel(f"phase {phase}", fontsize=10)
    for colour, name in zip(COLOURS, found.class_names, strict=False):
        grid[0, 0].scatter([], [], color=colour, label=name)
    grid[0, 0].scatter([], [], color=GREY, marker="x", label="other classes")
    legend = figure.legend(loc="outside lower center", ncols=options.classes + 1, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figure and the numbers. Returns the exit status."""
    options = parse_args(arguments)
    try:
        figure, rows = figure_of(options, opened(options))
        save_figure(figure, options.out)
        write_json(options.out.with_suffix(".json"), rows)
    except UsageError as error:
        print(f"plot_tsne.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"plot_tsne.py: --out {options.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print("\n".join([*table(rows), "", *EXPLANATION]))
    print(f"written: {options.out}, {options.out.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
