"""Write the tables of README.md and results/README.md from the runs in results/; the rest of the pages stays as it is.

    python scripts/benchmark/results_page.py

Above each table stands what its rows are, in a comment: "phases" (accuracy after each phase), "gains" (differences in
points between runs of the same seed) or "reported" (beside the paper's number), and "in" which folder of results/ the
runs are; then a line for each row:

    title = name of the runs, of a "gains" row also of those that they are compared with, classifier

The runs called NAME are NAME.json and NAME_seed*.json. Exit status: 0 done, 2 a row or a file is wrong.
"""

import operator
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_if_new
from mnemonics.reporting.paper import paper_number
from mnemonics.reporting.read import load_results
from mnemonics.reporting.tables import METRICS, interval, plus_minus
from mnemonics.reporting.text import Results, percent, render_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "results" / "README.md")
CLOSE = 1.0  # points: a mean no further from the paper's number counts as reproduced; the paper gives no spread
TABLE = re.compile(r"(?<=<!-- )(phases|gains|reported) in (\w+)\n(.*?)\n-->\n.*?(?=\n<!-- end -->)", re.DOTALL)
HEADERS = {
    "gains": ["average accuracy", "forgetting", "last accuracy", "n"],
    "reported": ["paper", "here", "difference", "n", "hours", f"within {CLOSE:g} point"],
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


def phases_row(title: str, runs: dict[int, Results], name: str) -> list[str]:
    """Accuracy after each phase, average and forgetting of a classifier, and the paper's average; of a run that was not
    finished, the accuracy alone."""
    curves = zip(*([phase["accuracy"][name] for phase in run["phases"]] for run in runs.values()), strict=True)
    means, run = [f"{interval(values)[0]:.2f}" for values in curves], next(iter(runs.values()))
    if missing := run["config"]["nb_phases"] + 1 - len(means):
        return [title, *means, *[""] * (missing + 2), str(len(runs)), ""]
    averages = [plus_minus(*interval([r["summary"][metric][name] for r in runs.values()])) for metric in METRICS[:2]]
    return [title, *means, *averages, str(len(runs)), percent(papers_average(run, name))]


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


def table(kind: str, lines: Sequence[str], folder: Path) -> str:
    """A table as Markdown. Raises UsageError naming the row that is wrong."""
    rows, row = [], {"phases": phases_row, "gains": gains_row, "reported": reported_row}[kind]
    for line in lines:
        try:
            title, what = line.split(" = ")
            *names, classifier = what.split()
            rows.append(row(title, *(runs_of(folder, name) for name in names), classifier))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"README.md: {line}: {type(error).__name__}: {error}") from error
    phases = [*map(str, range(len(rows[0]) - 5)), "average", "forgetting", "n", "the paper's average"]
    return render_table([["", *HEADERS.get(kind, phases)], *rows], "markdown")


def page(text: str, results: Path) -> str:
    """`text` with its tables written anew from the results in the folders of `results`."""

    def written(found: re.Match) -> str:
        kind, folder, lines = found.groups()
        return f"{kind} in {folder}\n{lines}\n-->\n\n{table(kind, lines.splitlines(), results / folder)}\n"

    return TABLE.sub(written, text)


@command("results_page.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pages."""
    for path in PAGES:
        write_if_new(path, page(path.read_text(encoding="utf-8"), ROOT / "results").encode())


if __name__ == "__main__":
    sys.exit(main())
