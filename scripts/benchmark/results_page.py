"""Write the tables of results/README.md from the runs in results/cifar100_cpu; the rest of the page stays as it is.

    python scripts/benchmark/results_page.py

Above each table stands what its rows are, in a comment: "phases" (accuracy after each phase) or "gains" (differences in
points between runs of the same seed), then a line for each row:

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

RESULTS = Path(__file__).resolve().parents[2] / "results"
TABLE = re.compile(r"(?<=<!-- )(phases|gains)\n(.*?)\n-->\n.*?(?=\n<!-- end -->)", re.DOTALL)


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
    """Accuracy after each phase, average and forgetting of a classifier, and the paper's average."""
    curves = zip(*([phase["accuracy"][name] for phase in run["phases"]] for run in runs.values()), strict=True)
    averages = [plus_minus(*interval([r["summary"][metric][name] for r in runs.values()])) for metric in METRICS[:2]]
    paper = percent(papers_average(next(iter(runs.values())), name))
    return [title, *(f"{interval(values)[0]:.2f}" for values in curves), *averages, str(len(runs)), paper]


def gains_row(title: str, runs: dict[int, Results], others: dict[int, Results], name: str) -> list[str]:
    """What `runs` have more than `others`, in points."""
    seeds = runs.keys() & others.keys()
    sides = [[[side[s]["summary"][m][name] for s in seeds] for m in METRICS] for side in (runs, others)]
    gains = [plus_minus(*interval(list(map(operator.sub, *pair))), "+") for pair in zip(*sides, strict=True)]
    return [title, *gains, str(len(seeds))]


def table(kind: str, lines: Sequence[str], folder: Path) -> str:
    """A table as Markdown. Raises UsageError naming the row that is wrong."""
    rows, row = [], {"phases": phases_row, "gains": gains_row}[kind]
    for line in lines:
        try:
            title, what = line.split(" = ")
            *names, classifier = what.split()
            rows.append(row(title, *(runs_of(folder, name) for name in names), classifier))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"README.md: {line}: {type(error).__name__}: {error}") from error
    phases = [*map(str, range(len(rows[0]) - 5)), "average", "forgetting", "n", "the paper's average"]
    header = phases if kind == "phases" else ["average accuracy", "forgetting", "last accuracy", "n"]
    return render_table([["", *header], *rows], "markdown")


def page(text: str, folder: Path) -> str:
    """`text` with its tables written anew from the results in `folder`."""
    return TABLE.sub(lambda m: f"{m[1]}\n{m[2]}\n-->\n\n{table(m[1], m[2].splitlines(), folder)}\n", text)


@command("results_page.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    path = RESULTS / "README.md"
    write_if_new(path, page(path.read_text(encoding="utf-8"), RESULTS / "cifar100_cpu").encode())


if __name__ == "__main__":
    sys.exit(main())
