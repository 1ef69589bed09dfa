"""Write the tables of README.md and results/README.md, and docs/bytes.png, from the runs in results/.

    python scripts/benchmark/results_page.py

Above each table stands what its rows are, in a comment: "phases" (accuracy after each phase), "gains" (differences in
points between runs of the same seed), "reported" (beside the paper's number) or "costs" (memory and time), and "in"
which folder of results/ the runs are; then a line for each row:

    title = name of the runs, of a "gains" row also of those that they are compared with, classifier

The runs called NAME are NAME.json and NAME_seed*.json. The figure shows the rows of "costs": accuracy over bytes, a
line for each title up to its semicolon. The rest of the pages stays as it is. Exit status: 0 done, 2 a row or a file is
wrong.
"""

import operator
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_if_new
from mnemonics.reporting.figures import COLOURS, DPI, LINE, MARKERS, legend_below, save_figure
from mnemonics.reporting.paper import paper_number
from mnemonics.reporting.read import load_results
from mnemonics.reporting.tables import METRICS, interval, plus_minus
from mnemonics.reporting.text import Results, percent, render_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md")
CLOSE = 1.0  # points: a mean no further from the paper's number counts as reproduced; the paper gives no spread
TABLE = re.compile(r"(?<=<!-- )(phases|gains|reported|costs) in (\w+)\n(.*?)\n-->\n.*?(?=\n<!-- end -->)", re.DOTALL)
SUMMARY = ("average", "forgetting", "n")
HEADERS = {
    "gains": ["average accuracy", "forgetting", "last accuracy", "n"],
    "reported": ["paper", "here", "difference", "n", "hours", f"within {CLOSE:g} point"],
    "costs": ["bytes of a class", "exemplars of a class", "images shown", "seconds a phase", *SUMMARY],
}


def runs_of(folder: Path, name: str) -> dict[int, Results]:
    """seed -> run, of the runs of this name."""
    paths = [folder / f"{name}.json", *sorted(folder.glob(f"{name}_seed*.json"))]
    return {run["config"]["random_seed"]: run for run in map(load_results, paths)}


def papers_average(results: Results, classifier: str) -> float | None:
    """None for a classifier that the paper does not have. LwF and iCaRL are one training with two classifiers."""
    config = results["config"]
    if (config["baseline"], classifier) == ("icarl", "cnn"):
        return paper_number(config | {"baseline": "lwf"}, "all")
    return paper_number(config, "all") if classifier == results["headline"] else None


def averages_of(runs: dict[int, Results], name: str) -> list[str]:
    """Average accuracy and forgetting of a classifier, over the seeds."""
    return [plus_minus(*interval([run["summary"][metric][name] for run in runs.values()])) for metric in METRICS[:2]]


def phases_row(title: str, runs: dict[int, Results], name: str) -> list[str]:
    """Accuracy after each phase, average and forgetting of a classifier, and the paper's average; of a run that was not
    finished, the accuracy alone."""
    curves = zip(*([phase["accuracy"][name] for phase in run["phases"]] for run in runs.values()), strict=True)
    means, run = [f"{interval(values)[0]:.2f}" for values in curves], next(iter(runs.values()))
    if missing := run["config"]["nb_phases"] + 1 - len(means):
        return [title, *means, *[""] * (missing + 2), str(len(runs)), ""]
    return [title, *means, *averages_of(runs, name), str(len(runs)), percent(papers_average(run, name))]


def reported_row(title: str, runs: dict[int, Results], name: str) -> list[str]:
    """The paper's average accuracy, that of the runs, the difference, and the mean of their hours."""
    paper = papers_average(next(iter(runs.values())), name)
    mean, half = interval([run["summary"]["average_accuracy"][name] for run in runs.values()])
    hours = [sum(sum(phase["seconds"].values()) for phase in run["phases"]) / 3600 for run in runs.values()]
    close = "yes" if abs(mean - paper) <= CLOSE else "no"
    taken = f"{interval(hours)[0]:.1f}"
    return [title, f"{paper:.2f}", plus_minus(mean, half), f"{mean - paper:+.2f}", str(len(runs)), taken, close]


def gains_row(title: str, runs: dict[int, Results], others: dict[int, Results], name: str) -> list[str]:
    """What `runs` have more than `others`, in points."""
    seeds = runs.keys() & others.keys()
    sides = [[[side[s]["summary"][m][name] for s in seeds] for m in METRICS] for side in (runs, others)]
    gains = [plus_minus(*interval(list(map(operator.sub, *pair))), "+") for pair in zip(*sides, strict=True)]
    return [title, *gains, str(len(seeds))]


def bytes_of_a_class(run: Results) -> float:
    """What the exemplars of a class take after the last phase, on average."""
    return run["phases"][-1]["exemplar_bytes"] / run["phases"][-1]["classes_seen"]


def costs_row(title: str, runs: dict[int, Results], name: str) -> list[str]:
    """Memory after the last phase; images shown and median seconds of training after phase 0; and what they give."""
    later = [phase for run in runs.values() for phase in run["phases"][1:]]
    counts = [run["phases"][-1]["exemplars_per_class"] for run in runs.values()]
    fewest, most = min(count["min"] for count in counts), max(count["max"] for count in counts)
    config = next(iter(runs.values()))["config"]
    images = sum(sum(phase["train_images"].values()) for phase in later) / len(runs)
    return [
        title,
        f"{statistics.fmean(map(bytes_of_a_class, runs.values())):,.0f}",
        str(most) if fewest == most else f"{fewest} to {most}",
        f"{images * (config.get('later_epochs') or config['epochs']):,.0f}",
        f"{statistics.median(phase['seconds']['train'] for phase in later):.0f}",
        *averages_of(runs, name),
        str(len(runs)),
    ]


def table(kind: str, lines: Sequence[str], folder: Path) -> str:
    """A table as Markdown. Raises UsageError naming the row that is wrong."""
    rows, row = [], {"phases": phases_row, "gains": gains_row, "reported": reported_row, "costs": costs_row}[kind]
    for line in lines:
        try:
            title, what = line.split(" = ")
            *names, classifier = what.split()
            rows.append(row(title, *(runs_of(folder, name) for name in names), classifier))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"README.md: {line}: {type(error).__name__}: {error}") from error
    phases = [*map(str, range(len(rows[0]) - 5)), *SUMMARY, "the paper's average"]
    return render_table([["", *HEADERS.get(kind, phases)], *rows], "markdown")


def page(text: str, results: Path) -> str:
    """`text` with its tables written anew from the results in the folders of `results`."""

    def written(found: re.Match) -> str:
        kind, folder, lines = found.groups()
        return f"{kind} in {folder}\n{lines}\n-->\n\n{table(kind, lines.splitlines(), results / folder)}\n"

    return TABLE.sub(written, text)


def bytes_figure(text: str, results: Path) -> Figure:
    """Average accuracy over the bytes of a class, of the rows of the tables of costs in `text`."""
    points: dict[str, list[tuple[float, float]]] = {}
    for folder, lines in ((found[2], found[3].splitlines()) for found in TABLE.finditer(text) if found[1] == "costs"):
        for title, what in (line.split(" = ") for line in lines):
            name, classifier = what.split()
            runs = runs_of(results / folder, name).values()
            accuracy = statistics.fmean(run["summary"]["average_accuracy"][classifier] for run in runs)
            x = statistics.fmean(map(bytes_of_a_class, runs))
            points.setdefault(title.partition(";")[0], []).append((x, accuracy))
    figure = Figure(figsize=(7.5, 4.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="bytes of a class", ylabel="average accuracy (%)")
    for i, (title, line) in enumerate(points.items()):
        axes.plot(*zip(*sorted(line), strict=True), color=COLOURS[i], marker=MARKERS[i % len(MARKERS)], label=title)
    legend_below(figure, axes.lines, list(points))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.grid(color=LINE, linewidth=0.6)
    return figure


@command("results_page.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pages and the figure."""
    for path in PAGES:
        write_if_new(path, page(path.read_text(encoding="utf-8"), ROOT / "results").encode())
    save_figure(bytes_figure(PAGES[1].read_text(encoding="utf-8"), ROOT / "results"), ROOT / "docs" / "bytes.png")


if __name__ == "__main__":
    sys.exit(main())
