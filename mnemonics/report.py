"""What a run measured, for people: plain-text tables, accuracy curves and grids of exemplars.

The tables are pure functions of the dict in `results.json`; the `plot_` functions write one PNG each. All accuracies
are in percent.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnemonics.checkpoint import atomic_write
from mnemonics.config import FIELDS

Results = dict[str, Any]  # the content of results.json
DPI = 100
TILE = 64  # side at which a small exemplar is shown, in screen pixels (rounded to a whole multiple of its own)
MARGIN, GAP, PANEL_GAP, TITLE_HEIGHT = 12, 6, 26, 32  # of the exemplar grid, in screen pixels
AVERAGE = (
    "average accuracy = mean over {phases} phases, phase 0 included, of the accuracy on the test images "
    "of all classes seen so far"
)
FORGETTING = (
    "forgetting = accuracy on the test images of the phase-0 classes of the first model minus that of the "
    "last; lower is better"
)


def classifiers(results: Results) -> list[str]:
    """The classifiers that were measured: "cnn", "nme" and, where asked for, "ncm"."""
    return [key for key in results["phases"][0]["accuracy"] if not key.endswith("_before_finetune")]


def budget(config: dict[str, Any]) -> str:
    """The exemplar budget in words. Per class and in total are different experiments, so every table says which."""
    if config["total_memory"] is not None:
        return f"{config['total_memory']} exemplars in total (--total_memory)"
    return f"{config['nb_protos']} exemplars per class (--nb_protos)"


def percent(value: float | None) -> str:
    """Two decimals; "-" where nothing was measured, as before fine-tuning in a phase that has none."""
    return "-" if value is None else f"{value:.2f}"


def aligned(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """One line per row, columns as wide as their widest cell: the first `left` flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def results_table(results: Results) -> str:
    """The table of one run: a row per finished phase, the summary per classifier, and what each number means.

    Args:
        results: content of results.json with at least one finished phase.
    """
    config, headline, names = results["config"], results["headline"], classifiers(results)
    shown = {name: name.upper() + "*" * (name == headline) for name in names}
    columns = {name: f"{shown[name]} %" for name in names}
    if config["finetune_epochs"]:
        columns |= {f"{name}_before_finetune": f"{shown[name]} before %" for name in names}
    rows = [
        [
            "phase",
            "classes",
            "train images",
            "exemplars/class",
            *columns.values(),
            f"phase-0 classes {shown[headline]} %",
            "seconds",
        ]
    ]
    for phase in results["phases"]:
        kept, images = phase["exemplars_per_class"], phase["train_images"]
        rows.append(
            [
                str(phase["phase"]),
                str(phase["classes_seen"]),
                f"{images['new']} + {images['old']}",
                f"{kept['min']}-{kept['max']}" if kept["min"] < kept["max"] else str(kept["min"]),
                *(percent(phase["accuracy"].get(key)) for key in columns),
                percent(phase["phase0_accuracy"][headline]),
                f"{sum(phase['seconds'].values()):.1f}",
            ]
        )
    summary = [
        [title, *(f"{shown[name]} {percent(results['summary'][key].get(name))}" for name in names)]
        for title, key in (
            ("average accuracy %", "average_accuracy"),
            ("last accuracy %", "last_accuracy"),
            ("forgetting, points", "forgetting"),
        )
    ]
    title = (
        f"{config['dataset']}, {config['baseline']} with {config['exemplars']} exemplars, "
        f"training seed {config['random_seed']}, class order seed {config['order_seed']}"
    )
    return "\n".join([title, "", *aligned(rows), "", *aligned(summary, left=1), "", *definitions(results)])


def definitions(results: Results) -> list[str]:
    """The lines under the table of a run: exactly what its numbers are."""
    finished, planned = len(results["phases"]), results["config"]["nb_phases"] + 1
    phases = f"all {planned}" if finished == planned else f"the {finished} finished of {planned}"
    tuning = (
        'after fine-tuning on the exemplars; "before" = before it'
        if results["config"]["finetune_epochs"]
        else "without fine-tuning on the exemplars"
    )
    lines = [
        "train images = images of the new classes + of old ones (exemplars, unless the baseline is a bound)",
        f"budget: {budget(results['config'])}",
        AVERAGE.format(phases=phases),
        FORGETTING,
        f"{tuning}; n runs = 1; * = headline classifier",
    ]
    if "ncm" in classifiers(results):
        lines.append("NCM reads all training data, which a learner would no longer have: an upper bound")
    return lines


def comparison_table(runs: Sequence[tuple[str, Results]]) -> str:
    """A row per run: accuracy of its headline classifier after each phase, average accuracy and forgetting. Below it,
    the settings in which the runs differ.

    Args:
        runs: (name, content of results.json) of each run; runs with fewer phases are padded with blanks.
    """
    longest = max(len(results["phases"]) for _, results in runs)
    rows = [["run", "exemplars", "classifier", *(f"phase {i}" for i in range(longest)), "average", "forgetting"]]
    for name, results in runs:
        headline, summary = results["headline"], results["summary"]
        finished, planned = len(results["phases"]), results["config"]["nb_phases"] + 1
        rows.append(
            [
                name if finished == planned else f"{name} ({finished} of {planned} phases)",
                budget(results["config"]).split(" (")[0].replace("exemplars ", ""),
                headline.upper(),
                *(percent(phase["accuracy"][headline]) for phase in results["phases"]),
                *[""] * (longest - finished),
                percent(summary["average_accuracy"][headline]),
                percent(summary["forgetting"][headline]),
            ]
        )
    lines = [
        *aligned(rows, left=3),
        "",
        "accuracies in percent of the headline classifier; n = 1 run per row",
        AVERAGE.format(phases="all finished"),
        FORGETTING,
    ]
    configs = [results["config"] for _, results in runs]
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [str(config.get(key)) for config in configs]
        if len(set(values)) > 1 and (key not in FIELDS or FIELDS[key].metadata["affects_results"]):
            lines.append(f"the runs differ in {key}: {' | '.join(values)}")
    return "\n".join(lines)


def save_png(figure: Figure, path: str | Path) -> None:
    """Write the drawn figure as an RGB PNG: whole, or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    atomic_write(Path(path), buffer.getvalue())


def plot_accuracy(runs: Sequence[tuple[str, Results]], path: str | Path) -> None:
    """Write a PNG of accuracy against the number of classes seen.

    Args:
        runs: (name, content of results.json) of each run. Several runs: the headline classifier of each. A single run:
            all its classifiers, the headline one solid.
        path: the PNG to write.
    """
    name, only = runs[0]
    curves = [(f"{name}: {results['headline'].upper()}", results, results["headline"]) for name, results in runs]
    if len(runs) == 1:
        curves = [(key.upper() + " (headline)" * (key == only["headline"]), only, key) for key in classifiers(only)]
    averages = [percent(results["summary"]["average_accuracy"][key]) for _, results, key in curves]
    labels = [
        textwrap.fill(f"{curve[0]}, average {average}%", 88) for curve, average in zip(curves, averages, strict=True)
    ]
    title = textwrap.fill(name if len(runs) == 1 else f"{len(runs)} runs, headline classifier of each", 88)
    # the legend goes below the axes, where it hides no curve; the figure grows with it, in both directions
    width = max(750, text_width(labels, 9) + 100, text_width([title], 10) + 40)
    figure = Figure(figsize=(width / DPI, 4.4 + 0.2 * "\n".join(labels).count("\n")), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (_, results, key) in enumerate(curves):
        axes.plot(
            [phase["classes_seen"] for phase in results["phases"]],
            [phase["accuracy"][key] for phase in results["phases"]],
            color=f"C{i % 10}",
            marker="osD^v"[i % 5],
            linestyle="-" if key == results["headline"] else "--",
            linewidth=1.8,
            markersize=5,
        )
    axes.set(xlabel="number of classes seen", ylabel="accuracy on all classes seen (%)")
    figure.suptitle(title, fontsize=10, parse_math=False)  # a $ in the name of a folder is a $
    ticks = sorted({phase["classes_seen"] for _, results in runs for phase in results["phases"]})
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    if len(ticks) <= 11:
        axes.set_xticks(ticks)
    axes.grid(alpha=0.3)
    legend = figure.legend(axes.lines, labels, loc="outside lower center", fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    canvas.draw()
    save_png(figure, path)


def exemplar_panels(before: torch.Tensor, after: torch.Tensor, amplify: int) -> torch.Tensor:
    """The amplified change of the exemplars: 128 + amplify * (after - before), clipped to 0..255.

    Args:
        before, after: uint8 tensors of one shape, e.g. [n, 3, H, W].
    Returns:
        uint8 tensor of the same shape; 128 (grey) where nothing changed.
    """
    change = after.int() - before.int()  # signed: uint8 arithmetic would wrap around
    return (128 + amplify * change).clamp(0, 255).to(torch.uint8)


def rows_of_classes(labels: torch.Tensor, max_classes: int, per_class: int) -> dict[int, torch.Tensor]:
    """Which exemplars a grid shows: evenly spaced labels of those in `labels` (int64 [n]) -> int64 [<= per_class]."""
    present = labels.unique().tolist()  # sorted
    spaced = np.linspace(0, len(present) - 1, min(max_classes, len(present))).round().astype(int)
    return {present[i]: (labels == present[i]).nonzero().flatten()[:per_class] for i in spaced}


def screen_tiles(images: torch.Tensor) -> np.ndarray:
    """uint8 [n, 3, H, W] -> uint8 [n, h, w, 3]: each pixel a square of screen pixels; large images are thinned out."""
    side = max(images.shape[2:])
    step, scale = -(-side // (2 * TILE)), max(1, round(TILE / side))
    thin = images[:, :, ::step, ::step].permute(0, 2, 3, 1).cpu().numpy()
    return thin.repeat(scale, axis=1).repeat(scale, axis=2)


def text_width(texts: Sequence[str], size: float) -> int:
    """Width in screen pixels of the widest text at this font size (points)."""
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [figure.text(0, 0, text, fontsize=size, parse_math=False) for text in texts]
    return max(int(np.ceil(text.get_window_extent(renderer).width)) for text in drawn)


def plot_exemplars(
    before: torch.Tensor,
    after: torch.Tensor,
    labels: torch.Tensor,
    class_names: Sequence[str],
    path: str | Path,
    amplify: int = 5,
    max_classes: int = 10,
    per_class: int = 5,
) -> None:
    """Write a PNG grid of exemplars before and after they were optimised: a row per class, three panels side by side.

    Args:
        before, after: uint8 [n, 3, H, W]. Where they are equal (real images) a single panel is drawn.
        labels: int64 [n], positions in the class order.
        class_names: the name of each label.
        path: the PNG to write, in exact colours.
        amplify: factor of the difference panel.
        max_classes: rows; of more classes, evenly spaced ones are shown.
        per_class: exemplars per row, the first ones of the class.
    """
    panels = (
        {"exemplars": after}
        if before.equal(after)
        else {"before": before, "after": after, f"difference x{amplify}": exemplar_panels(before, after, amplify)}
    )
    rows = rows_of_classes(labels, max_classes, per_class)
    names = [str(class_names[label]) for label in rows]
    height, width = screen_tiles(after[:1]).shape[1:3]
    left = MARGIN + text_width(names, 10) + MARGIN
    panel_width = max(max(map(len, rows.values())) * (width + GAP) - GAP, text_width(list(panels), 11))
    total_width = left + len(panels) * (panel_width + PANEL_GAP) - PANEL_GAP + MARGIN
    total_height = TITLE_HEIGHT + len(rows) * (height + GAP) - GAP + MARGIN
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: int, align: str) -> None:  # in screen pixels from the upper left
        figure.text(x / total_width, 1 - y / total_height, text, fontsize=size, ha=align, va="center", parse_math=False)

    picture = np.full((total_height, total_width, 3), 255, np.uint8)
    for r, name in enumerate(names):
        write(left - MARGIN, TITLE_HEIGHT + r * (height + GAP) + height / 2, name, 10, "right")
    for p, (title, images) in enumerate(panels.items()):
        write(left + p * (panel_width + PANEL_GAP), TITLE_HEIGHT / 2, title, 11, "left")
        for r, indices in enumerate(rows.values()):
            for c, tile in enumerate(screen_tiles(images[indices])):
                y, x = TITLE_HEIGHT + r * (height + GAP), left + p * (panel_width + PANEL_GAP) + c * (width + GAP)
                picture[y - 1 : y + height + 1, x - 1 : x + width + 1] = 190  # a frame, for images with white borders
                picture[y : y + height, x : x + width] = tile
    figure.figimage(picture)  # unlike imshow it resamples nothing
    canvas.draw()
    save_png(figure, path)
