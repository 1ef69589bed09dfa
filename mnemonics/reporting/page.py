"""One page on one run or several (report.html): everything is inside it, it has no script and needs no network.

Every number comes from results.json; the template escapes all text.
"""

import base64
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mnemonics.engine.files import atomic_write
from mnemonics.experiment.results import read_confusion
from mnemonics.reporting import figures, text
from mnemonics.reporting.paper import differences, paper_number, same_protocol
from mnemonics.reporting.read import load_results, run_names
from mnemonics.reporting.text import SUMMARY, Results, Rows, percent, with_header

PICTURES = 4  # of exemplars: so many in a page on one run, fewer per run in one on several
RELOAD_SECONDS = 30  # between two looks of a browser at the page of a run that goes on
CLOCK = "%Y-%m-%d %H:%M:%S %z"
STAGES = ("train", "exemplars", "finetune", "evaluate")  # of a phase, in the order of "seconds" in results.json
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


def write_report(paths: Sequence[Path], out: Path, running: bool = False) -> None:
    """Write the page on these runs (folders, or results files) to `out`: whole, or not at all; the same runs give the
    same page.

    Args:
        running: whether the only run goes on, unfinished. The page then says when it was written and how long the rest
            will take, and a browser that shows it loads it again and again.
    Raises:
        UsageError: naming the file, for a run that cannot be used.
        OSError: if `out` cannot be written.
    """
    runs = list(zip(run_names(paths), map(load_results, paths), strict=True))
    configs = [results["config"] for _, results in runs]
    differing = text.differing_settings(configs)
    same = configs[0].keys() - {row[0] for row in differing}
    measured = dict.fromkeys(classifier for _, results in runs for classifier in text.classifiers(results))
    several, pictures = len(runs) > 1, max(1, PICTURES // len(runs))
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=templates, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("report.html").render(
        outlook=f"{text.outlook(runs[0][1])}. Written at {time.strftime(CLOCK)}" if running else "",
        reload_seconds=RELOAD_SECONDS,
        title=f"Comparison of {len(runs)} runs" if several else runs[0][0],
        parts=[part(path, *run, pictures) for path, run in zip(paths, runs, strict=True)],
        curves=[curve_figure(runs, metric) for metric in METRICS],
        comparison=text.comparison_rows(runs) if several else [],
        differing=[["setting", *(name for name, _ in runs)], *differing] if differing else [],
        settings=[(name, text.in_words(value)) for name, value in configs[0].items() if name in same],
        definitions=[
            *(text.OF_SEVERAL if several else text.definitions(runs[0][1])),
            *(text.CLASSIFIERS[name] for name in measured),
        ],
    )
    atomic_write(out, page.encode())


def part(path: Path, name: str, results: Results, pictures: int) -> dict[str, Any]:
    """What the page shows of one run (folder, or results file), with up to `pictures` of its exemplars."""
    config = results["config"]
    transfer = text.in_words(bool(config.get("weight_transfer")))
    in_paper = any(paper_number(config, table) is not None for table in ("all", "figure4"))
    order = {"class order": ", ".join(map(str, results["class_order"])), "its SHA-256": results["class_order_sha256"]}
    return {
        "name": name,
        "title": f"{text.title_of(results)}; {text.budget(config)[0]}; weight transfer {transfer}",
        "unfinished": "" if text.is_finished(results) else f"{text.finished_phases(results)} phases are finished",
        "deviations": "; ".join(differences(results)) if in_paper and same_protocol(results) else "",
        "summary": summary_rows(results),
        "phases": text.phase_rows(results),
        "origin": origin_rows(results),
        "confusion": confusion_figure(path, results, f"{name}-confusion"),
        "exemplars": exemplars_of(path, results, pictures),
        "panels": {phase["phase"]: panels(config, phase) for phase in results["phases"]},
        "losses": loss_rows(results),
        "seconds": time_rows(results),
        "environment": [(k.replace("_", " "), str(value)) for k, value in (results["environment"] | order).items()],
    }


def panels(config: dict[str, Any], phase: dict[str, Any]) -> str:
    """What the picture of the exemplars of a phase shows; for `no_better` optimised ones the others were taken."""
    stored, losses = config.get("exemplar_format") or "raw", phase.get("exemplar_validation_loss")
    fell_back = config.get("mnemonics_fall_back") and losses and losses["rounded"] >= losses["start"]
    made = ["optimised"] * bool(losses and not fell_back) + [f"stored as {stored}"] * (":" in stored)
    return f"real images | {' and '.join(made)} | amplified difference" if made else "real images, as chosen"


# tables


def summary_rows(results: Results) -> Rows:
    """The summary of each classifier. Beside it the paper's numbers, where all phases are finished and the protocol
    is the paper's."""
    rows, theirs = text.summary_rows(results), [paper_number(results["config"], "all", key) for key in SUMMARY]
    if not (any(theirs) and text.is_finished(results) and same_protocol(results)):
        return rows
    column = [f"{results['headline'].upper()} in the paper", *map(percent, theirs)]
    return [[*row, cell] for row, cell in zip(rows, column, strict=True)]


def origin_rows(results: Results) -> Rows:
    """Accuracy of the headline classifier: after each phase (row), on the classes that were new in each (column)."""
    numbers = [phase["phase"] for phase in results["phases"]]
    rows = []
    for phase in results["phases"]:
        percents = phase["accuracy_by_phase_of_origin"][results["headline"]]
        rows.append([phase["phase"], *map(percent, percents), *[""] * (len(numbers) - len(percents))])
    return [["after phase", *numbers], *rows]


def loss_rows(results: Results) -> Rows:
    """Validation loss of the new exemplars of each phase, and how far they moved; nothing if they are real images."""
    rows = [
        {
            "phase": phase["phase"],
            "loss before": f"{losses['start']:.4f}",
            "loss after": f"{losses['optimised']:.4f}",
            "loss as 8-bit pixels": f"{losses['rounded']:.4f}",
            **({"loss as stored": f"{losses['stored']:.4f}"} if "stored" in losses else {}),
            "mean change, grey levels": percent(phase.get("exemplar_change_grey_levels")),
        }
        for phase in results["phases"]
        if (losses := phase.get("exemplar_validation_loss"))
    ]
    return with_header(rows)


def time_rows(results: Results) -> Rows:
    """Seconds of each stage, peak memory, and the bytes of the stored exemplars, for each phase; and of all."""
    phases = results["phases"]
    rows = [
        {
            "phase": phase["phase"],
            **{f"{stage}, s": percent(phase["seconds"].get(stage)) for stage in STAGES},
            "total, s": percent(sum(phase["seconds"].values())),
            "peak, MiB": f"{phase['peak_memory_bytes'] / 2**20:.0f}",
            "stored, KiB": f"{phase['exemplar_bytes'] / 2**10:.1f}",
            **({"stored, dB": percent(phase["exemplar_psnr_db"])} if "exemplar_psnr_db" in phase else {}),
        }
        for phase in phases
    ]
    sums = [sum(phase["seconds"].get(stage, 0.0) for phase in phases) for stage in STAGES]
    everything = ["all", *map(percent, [*sums, sum(sums)])]
    return [*with_header(rows), everything + [""] * (len(rows[0]) - len(everything))]


# figures


def measured_curves(runs: Sequence[tuple[str, Results]], metric: str) -> list[figures.Curve]:
    """A metric against the number of classes seen. Several runs: the headline classifier of each. A single run: all its
    classifiers, those that are not the headline one dashed."""
    curves, (summary, words, _) = [], METRICS[metric]
    for name, results in runs:
        headline, alone = results["headline"], len(runs) == 1
        for key in text.classifiers(results) if alone else [headline]:
            label = key.upper() + " (headline)" * (key == headline) if alone else f"{name}: {key.upper()}"
            curve = figures.Curve(
                f"{label}, {words.format(percent(results['summary'][summary][key]))}",
                [phase["classes_seen"] for phase in results["phases"]],
                [phase[metric][key] for phase in results["phases"]],
                dashed=key != headline,
            )
            curves.append(curve)
    return curves


def curve_figure(runs: Sequence[tuple[str, Results]], metric: str) -> Markup:
    """A metric of all runs over the classes seen; the paper's accuracies in grey where the protocol is the same."""
    curves = measured_curves(runs, metric)
    if metric == "accuracy":
        curves += figures.paper_curves([results for _, results in runs])
    labels = [textwrap.fill(curve.label, 58) for curve in curves]
    figure, axes = figures.figure_for_page(2.8 + 0.16 * sum(label.count("\n") + 1 for label in labels))
    figures.plot_curves(axes, curves, metric)
    figures.legend_below(figure, axes.lines, labels, fontsize=8)
    return figures.to_html(figure, metric, METRICS[metric][2])


def confusion_figure(path: Path, results: Results, name: str) -> Markup | None:
    """The confusion matrix; None where the run folder has none."""
    found = read_confusion(path)
    if found is None:
        return None
    seen = [phase["classes_seen"] for phase in results["phases"]]
    starts = [0, *(count for count in seen if count < len(found.class_names))]
    caption = (
        f"{found.classifier.upper()} after phase {found.phase}: test images of the true class (row) by predicted class "
        f"(column), both in class order; lines separate the phases. Colour: from 0% (none) to 100% (full)."
    )
    if newest := starts[-1]:
        as_new = 100 * found.counts[:newest, newest:].sum() / max(found.counts[:newest].sum(), 1)
        caption += f" Of the old classes' images, {as_new:.2f}% are taken for a class of the last phase."
    figure, axes = figures.figure_for_page(height=4.4)
    figures.plot_confusion(axes, found.counts, starts, found.class_names)
    return figures.to_html(figure, name, caption)


def exemplars_of(path: Path, results: Results, count: int) -> dict[int, str]:
    """phase -> picture of its new exemplars (PNG in base64): up to `count`, evenly spaced over the phases."""
    pictures = {phase["phase"]: path / f"exemplars_phase_{phase['phase']}.png" for phase in results["phases"]}
    found = [phase for phase, picture in pictures.items() if picture.is_file()]
    return {phase: base64.b64encode(pictures[phase].read_bytes()).decode() for phase in figures.evenly(found, count)}
