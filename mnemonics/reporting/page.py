"""One page on one run or several (report.html): everything is inside it, it has no script and needs no network.

`page` is a pure function of what runs left behind. Every number comes from results.json; the template escapes all text.
"""

import base64
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from mnemonics.engine.files import atomic_write
from mnemonics.experiment.results import Confusion, read_confusion
from mnemonics.reporting import figures, text
from mnemonics.reporting.paper import differences, load_paper, paper_number, same_protocol
from mnemonics.reporting.read import exemplar_pictures, load_results, run_names
from mnemonics.reporting.text import SUMMARY, Results, Rows, percent

PICTURES = 4  # of exemplars: so many in a page on one run, fewer per run in one on several
IN_PAPER = ("average_accuracy", "forgetting")  # of SUMMARY
BLANK_TO_FULL = "Colour: from 0% (none) to 100% (full)."
IMAGE = Markup('<div class="scroll" tabindex="0" role="region" aria-label="picture"><img class="exemplars" alt="{}" '
               'src="data:image/png;base64,{}"></div>')  # fmt: skip
METRICS = {  # key of a phase -> (key of the summary, its words in a legend, caption of the curves)
    "accuracy": (
        "average_accuracy",
        "average {}%",
        "Accuracy on the test images of all classes seen so far, after each phase.",
    ),
    "phase0_accuracy": (
        "forgetting",
        "forgetting {} points",
        "Accuracy on the test images of the phase-0 classes alone. Forgetting is the first value minus the last: the "
        "less a curve falls, the better.",
    ),
}


@dataclass(frozen=True)
class ReportedRun:
    """What a page shows of a run."""

    name: str
    results: Results
    pictures: dict[int, bytes]  # phase -> PNG of exemplars
    confusion: Confusion | None


class Illustration(NamedTuple):
    """A figure of the page with its caption; or a sentence alone."""

    caption: str
    html: Markup = Markup()


def write_report(paths: Sequence[Path], out: Path) -> None:
    """Write the page on these runs (folders, or results files) to `out`: whole, or not at all.

    Raises:
        UsageError: naming the file, for a run that cannot be used.
        OSError: if `out` cannot be written.
    """
    pictures = max(1, PICTURES // len(paths))
    runs = [loaded(path, name, pictures) for path, name in zip(paths, run_names(paths), strict=True)]
    atomic_write(out, page(runs, load_paper()).encode())


def loaded(path: Path, name: str, pictures: int) -> ReportedRun:
    """A run folder (or results file) with up to `pictures` of its exemplars, evenly spaced over the phases."""
    found = exemplar_pictures(path)  # none beside a file
    chosen = {phase: found[phase].read_bytes() for phase in figures.evenly(list(found), pictures)}
    return ReportedRun(name, load_results(path), chosen, read_confusion(path))


def page(runs: Sequence[ReportedRun], paper: dict[str, Any]) -> str:
    """The HTML; the same runs give the same text. `paper` is the content of paper_results.json."""
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=templates, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    named, configs = [(run.name, run.results) for run in runs], [run.results["config"] for run in runs]
    differing = text.differing_settings(configs)
    same = configs[0].keys() - {row[0] for row in differing}
    measured = dict.fromkeys(classifier for run in runs for classifier in text.classifiers(run.results))
    return environment.get_template("report.html").render(
        title=f"Comparison of {len(runs)} runs" if len(runs) > 1 else runs[0].name,
        parts=[part(run, f"r{i}", paper) for i, run in enumerate(runs)],
        curves=[curve_figure(named, metric, paper) for metric in METRICS],
        comparison=text.comparison_rows(named) if len(runs) > 1 else [],
        differing=[["setting", *(run.name for run in runs)], *differing] if differing else [],
        settings=[(name, text.in_words(value)) for name, value in configs[0].items() if name in same],
        definitions=[
            *(text.OF_SEVERAL if len(runs) > 1 else text.definitions(runs[0].results)),
            *(text.CLASSIFIERS[name] for name in measured),
        ],
    )


def part(run: ReportedRun, name: str, paper: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of one run. `name` is for the ids of its figures."""
    results, config = run.results, run.results["config"]
    transfer = text.in_words(bool(config.get("weight_transfer")))
    in_paper = any(paper_number(paper, config, table) is not None for table in ("all", "figure4"))
    order = {"class order": ", ".join(map(str, results["class_order"])), "its SHA-256": results["class_order_sha256"]}
    return {
        "name": run.name,
        "title": f"{text.title_of(results)}; {text.budget(config)}; weight transfer {transfer}",
        "unfinished": "" if text.is_finished(results) else f"{text.finished_phases(results)} phases are finished",
        "deviations": "; ".join(differences(results)) if in_paper and same_protocol(results) else "",
        "summary": summary_rows(results, paper),
        "phases": text.phase_rows(results),
        "origin": origin_figure(results, f"{name}-origin"),
        "confusion": confusion_figure(run, f"{name}-confusion"),
        "exemplars": exemplar_figures(run),
        "losses": loss_rows(results),
        "time": time_figure(results, f"{name}-time"),
        "seconds": time_rows(results),
        "environment": [(k.replace("_", " "), str(value)) for k, value in (results["environment"] | order).items()],
    }


# tables


def summary_rows(results: Results, paper: dict[str, Any]) -> Rows:
    """The summary of each classifier. Beside it the paper's numbers, where all phases are finished and the protocol
    is the paper's."""
    rows, theirs = text.summary_rows(results), []
    if text.is_finished(results) and same_protocol(results):
        theirs = [paper_number(paper, results["config"], "all", key) if key in IN_PAPER else None for key in SUMMARY]
    if not any(theirs):
        return rows
    column = [f"{results['headline'].upper()} in the paper", *map(percent, theirs)]
    return [[*row, cell] for row, cell in zip(rows, column, strict=True)]


def loss_rows(results: Results) -> Rows:
    """Validation loss of the new exemplars of each phase, and how far they moved; nothing if they are real images."""
    rows = [["phase", "loss before", "loss after", "loss as 8-bit pixels", "mean change, grey levels"]]
    for phase in results["phases"]:
        if losses := phase.get("exemplar_validation_loss"):
            values = [f"{losses[key]:.4f}" for key in ("start", "optimised", "rounded")]
            rows.append([str(phase["phase"]), *values, percent(phase.get("exemplar_change_grey_levels"))])
    return rows if len(rows) > 1 else []


def time_rows(results: Results) -> Rows:
    """Seconds of each stage, peak memory, and what the pixels of the exemplars take, for each phase."""
    rows = [["phase", *(f"{stage}, s" for stage in figures.STAGES), "total, s", "peak, MiB", "stored, KiB"]]
    for phase in results["phases"]:
        seconds = [*map(phase["seconds"].get, figures.STAGES), sum(phase["seconds"].values())]
        sizes = [f"{phase['peak_memory_bytes'] / 2**20:.0f}", f"{phase['exemplar_bytes'] / 2**10:.1f}"]
        rows.append([str(phase["phase"]), *map(percent, seconds), *sizes])
    return rows


# figures


def illustration(figure: Figure, name: str, caption: str) -> Illustration:
    return Illustration(caption, figures.to_svg(figure, name, caption))


def measured_curves(runs: Sequence[tuple[str, Results]], metric: str) -> list[figures.Curve]:
    """A metric against the number of classes seen. Several runs: the headline classifier of each. A single run: all its
    classifiers, those that are not the headline one dashed."""
    only, (summary, words, _) = runs[0][1], METRICS[metric]
    chosen = [(f"{name}: {results['headline'].upper()}", results, results["headline"]) for name, results in runs]
    if len(runs) == 1:
        chosen = [
            (key.upper() + " (headline)" * (key == only["headline"]), only, key) for key in text.classifiers(only)
        ]
    return [
        figures.Curve(
            f"{label}, {words.format(percent(results['summary'][summary][key]))}",
            [phase["classes_seen"] for phase in results["phases"]],
            [phase[metric][key] for phase in results["phases"]],
            dashed=key != results["headline"],
            **figures.style_of(i),
        )
        for i, (label, results, key) in enumerate(chosen)
    ]


def curve_figure(runs: Sequence[tuple[str, Results]], metric: str, paper: dict[str, Any]) -> Illustration:
    """A metric of all runs over the classes seen; the paper's accuracies in grey where the protocol is the same."""
    curves = measured_curves(runs, metric)
    if metric == "accuracy":
        curves += figures.paper_curves([results for _, results in runs], paper)
    labels = [textwrap.fill(curve.label, 58) for curve in curves]
    figure, axes = figures.figure_for_page(2.8 + 0.16 * sum(label.count("\n") + 1 for label in labels))
    figures.plot_curves(axes, curves, metric)
    figures.legend_below(figure, axes.lines, labels, fontsize=8)
    return illustration(figure, metric, METRICS[metric][2])


def origin_figure(results: Results, name: str) -> Illustration:
    """What is left of the classes of each phase."""
    headline = results["headline"]
    caption = (
        f"{headline.upper()} accuracy (%) on the test images of the classes that were new in each phase (column), "
        f"after each phase (row). {BLANK_TO_FULL}"
    )
    figure, axes = figures.figure_for_page(height=3.6)
    figures.plot_origin(axes, [phase["accuracy_by_phase_of_origin"][headline] for phase in results["phases"]])
    return illustration(figure, name, caption)


def confusion_figure(run: ReportedRun, name: str) -> Illustration:
    """The confusion matrix, or why there is none."""
    found = run.confusion
    if found is None:
        return Illustration("No confusion matrix: there is no confusion.json beside the results.")
    seen = [phase["classes_seen"] for phase in run.results["phases"]]
    starts = [0, *(count for count in seen if count < len(found.class_names))]
    caption = (
        f"{found.classifier.upper()} after phase {found.phase}: test images of the true class (row) by predicted class "
        f"(column), both in class order; lines separate the phases. {BLANK_TO_FULL}"
    )
    if newest := starts[-1]:
        as_new = 100 * found.counts[:newest, newest:].sum() / max(found.counts[:newest].sum(), 1)
        caption += f" Of the old classes' images, {as_new:.2f}% are taken for a class of the last phase."
    figure, axes = figures.figure_for_page(height=4.4)
    figures.plot_confusion(axes, found.counts, starts, found.class_names)
    return illustration(figure, name, caption)


def time_figure(results: Results, name: str) -> Illustration:
    """Where the time went."""
    figure, axes = figures.figure_for_page()
    figures.plot_seconds(axes, results["phases"])
    sums = {stage: sum(phase["seconds"].get(stage, 0.0) for phase in results["phases"]) for stage in figures.STAGES}
    figures.legend_below(figure, axes.containers, [f"{stage}: {s:.2f} s" for stage, s in sums.items()], ncols=2)
    caption = f"Seconds of each stage of a phase; {sum(sums.values()):.2f} s in all."
    return illustration(figure, name, caption)


def exemplar_figures(run: ReportedRun) -> list[Illustration]:
    """The pictures of exemplars; a sentence alone where there is none."""
    optimised = run.results["config"]["exemplars"] == "mnemonics"
    what = "real images they started from | optimised | amplified difference" if optimised else "real images, as chosen"
    found = []
    for phase, png in run.pictures.items():
        caption = f"New exemplars of phase {phase}: {what}. A row per class."
        found.append(Illustration(caption, IMAGE.format(caption, base64.b64encode(png).decode())))
    return found or [Illustration("No pictures of exemplars: there is no exemplars_phase_<i>.png beside the results.")]
