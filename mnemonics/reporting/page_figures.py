"""The figures of a report: SVG and PNG, each with its caption."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mnemonics.reporting.figures import (
    GREY,
    MARKERS,
    METRICS,
    STAGES,
    Curve,
    draw_confusion,
    draw_curves,
    draw_origin,
    draw_seconds,
    measured_curves,
    shares_of_rows,
    style_of,
)
from mnemonics.reporting.paper import paper_number, place, same_protocol
from mnemonics.reporting.read import Confusion, exemplar_pictures, load_results, read_confusion, results_path
from mnemonics.reporting.svg import THEME, small_figure, to_svg
from mnemonics.reporting.text import Results, percent

SIGNS = dict(zip(MARKERS, "●■◆▲▼", strict=True))  # what a legend shows for a marker
BLANK_TO_FULL = "Colour: from 0% (none) to 100% (full)."


@dataclass(frozen=True)
class Run:
    """What a page shows of a run."""

    name: str
    path: Path  # of its results
    results: Results
    pictures: dict[int, bytes]  # phase -> PNG of exemplars
    more_pictures: int  # that the run folder holds
    confusion: Confusion | None

    @property
    def headline(self) -> str:
        return self.results["headline"]


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    label: str
    colour: str  # variable of the page
    sign: str
    line: str = "none"  # or "solid", "dashed"


@dataclass(frozen=True)
class Shown:
    """A figure of a page; either `svg`, or `source` with `alt`."""

    caption: str
    svg: Markup | None = None
    keys: list[Key] = field(default_factory=list)
    source: str = ""
    alt: str = ""


def loaded(path: Path, name: str, pictures: int) -> Run:
    """A run folder (or results file) with up to `pictures` of its exemplars, evenly spaced over the phases.

    Raises:
        ValueError: where it cannot be used (one line naming the file).
    """
    results, folder = load_results(path), path if path.is_dir() else None
    found = exemplar_pictures(path) if folder else {}
    phases = [list(found)[i] for i in np.linspace(0, len(found) - 1, min(pictures, len(found))).round().astype(int)]
    chosen = {phase: found[phase].read_bytes() for phase in phases}
    confusion = read_confusion(path) if folder else None
    return Run(name, results_path(path), results, chosen, len(found) - len(chosen), confusion)


# curves


def curve_figure(runs: Sequence[Run], metric: str, paper: dict[str, Any]) -> Shown:
    """A metric of all runs over the classes seen; the paper's accuracies in grey where the protocol is the same."""
    curves = measured_curves([(run.name, run.results) for run in runs], metric)
    background = paper_curves([run.results for run in runs], paper) if metric == "accuracy" else []
    figure, axes = small_figure()
    draw_curves(axes, [*background, *curves], METRICS[metric][2])
    captions = {
        "accuracy": "Accuracy on the test images of all classes seen so far, after each phase.",
        "phase0_accuracy": "Accuracy on the test images of the phase-0 classes alone. Forgetting is the first value "
        "minus the last: the less a curve falls, the better.",
    }
    numbers = "; ".join(f"{c.label}: {', '.join(map(percent, c.y))}" for c in curves)
    keys = [
        Key(c.label, THEME[c.colour], SIGNS[c.marker], "dashed" if c.dashed else "solid")
        for c in (*curves, *background)
    ]
    return Shown(captions[metric], svg(figure, metric, f"{METRICS[metric][2]} after each phase. {numbers}"), keys)


def paper_curves(runs: Sequence[Results], paper: dict[str, Any]) -> list[Curve]:
    """The curves of the paper's figure 4 that belong to these runs, each once."""
    found: dict[str, Curve] = {}
    for results in runs:
        config, phases = results["config"], results["phases"]
        percents = paper_number(paper, config, "figure4") if same_protocol(results) else None
        if percents is not None:
            row = place(config, "figure4")[1]
            label = f"the paper's {row} (figure 4), average {np.mean(percents):.2f}%"
            style = style_of(len(found)) | {"colour": GREY}
            seen = [phase["classes_seen"] for phase in phases]
            found.setdefault(row, Curve(label, seen, percents[: len(seen)], **style))
    return list(found.values())


# one figure per run


def origin_figure(run: Run, name: str) -> Shown:
    by_phase = [phase["accuracy_by_phase_of_origin"][run.headline] for phase in run.results["phases"]]
    figure, axes = small_figure(height=3.6)
    draw_origin(axes, by_phase)
    last = ", ".join(f"phase {i} {percent(value)}" for i, value in enumerate(by_phase[-1]))
    caption = f"{run.headline.upper()} accuracy (%) on the test images of the classes that were new in each phase"
    alt = f"{caption}, after each phase. After the last one: {last}"
    return Shown(f"{caption} (column), after each phase (row). {BLANK_TO_FULL}", svg(figure, name, alt))


def confusion_figure(run: Run, name: str) -> Shown:
    """The confusion matrix, or why there is none."""
    confusion = run.confusion
    if confusion is None:
        return Shown("No confusion matrix: there is no confusion.json beside the results.")
    seen = [phase["classes_seen"] for phase in run.results["phases"]]
    starts = [0, *(count for count in seen if count < len(confusion.class_names))]
    figure, axes = small_figure(height=4.4)
    draw_confusion(axes, confusion.counts, starts, confusion.class_names)
    right = np.diag(shares_of_rows(confusion.counts))
    newest = starts[-1]
    as_new = 100 * confusion.counts[:newest, newest:].sum() / max(confusion.counts[:newest].sum(), 1)
    caption = (
        f"{confusion.classifier.upper()} after phase {confusion.phase}: test images of the true class (row) by "
        f"predicted class (column), both in class order; lines separate the phases. {BLANK_TO_FULL}"
    )
    if newest:
        caption += f" Of the old classes' images, {as_new:.2f}% are taken for a class of the last phase."
    alt = f"Confusion matrix of {len(right)} classes; right predictions: {right.min():.2f}% to {right.max():.2f}%"
    return Shown(caption, svg(figure, name, alt))


def time_figure(run: Run, name: str) -> Shown:
    phases = run.results["phases"]
    figure, axes = small_figure()
    draw_seconds(axes, phases)
    sums = {stage: sum(phase["seconds"].get(stage, 0.0) for phase in phases) for stage in STAGES}
    keys = [Key(f"{stage}: {sums[stage]:.2f} s", THEME[style_of(i)["colour"]], "■") for i, stage in enumerate(STAGES)]
    words = ", ".join(key.label for key in keys)
    return Shown("Seconds of each stage of a phase.", svg(figure, name, f"Seconds of each stage, in all {words}"), keys)


def exemplar_figures(run: Run) -> list[Shown]:
    """The pictures of exemplars; a sentence alone where there is none, or where there are more."""
    optimised = run.results["config"]["exemplars"] == "mnemonics"
    what = "real images they started from | optimised | amplified difference" if optimised else "real images, as chosen"
    figures = [
        Shown(
            f"New exemplars of phase {phase}: {what}. A row per class.",
            source="data:image/png;base64," + base64.b64encode(png).decode(),
            alt=f"Exemplars of the classes that were new in phase {phase}: {what}",
        )
        for phase, png in run.pictures.items()
    ]
    if not figures:
        return [Shown("No pictures of exemplars: there is no exemplars_phase_<i>.png beside the results.")]
    more = [Shown(f"{run.more_pictures} more phases: exemplars_phase_<i>.png in the run folder.")]
    return figures + (more if run.more_pictures else [])


def svg(figure: Any, name: str, alt: str) -> Markup:
    return Markup(to_svg(figure, name, alt))  # its text is escaped there
