"""Write results/README.md from its template and the results beside it: every number in a table is read from a file.

    python scripts/benchmark/results_page.py

The template, results/README.md.j2, is Markdown in which `{{ ... }}` calls the public methods of `Page`: Jinja2. Results
are chosen by their settings, never by the names of their files. Exit status: 0 done, 2 a call or a file is wrong.
"""

import json
import operator
import sys
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jinja2

from mnemonics.config.fields import SETTINGS
from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.files import write_if_new
from mnemonics.reporting.paper import load_paper, paper_number
from mnemonics.reporting.read import load_all
from mnemonics.reporting.tables import interval
from mnemonics.reporting.text import Results, is_finished, percent, render_table

RESULTS = Path(__file__).resolve().parents[2] / "results"
METRICS = ("average_accuracy", "forgetting", "last_accuracy")  # of the summary
Settings = dict[str, Any]


class Page:
    """What a template can call. Settings are those of config.json, and "tuned": whether there was any fine-tuning, and
    "device"; "classifier" is "cnn" or "nme", by default the headline one. Raises UsageError where nothing fits."""

    def __init__(self, folder: Path):
        self.folder, self.paper = folder, load_paper()
        self.results = [results for _, results in load_all([folder])]

    def runs(self, settings: Settings) -> tuple[list[Results], str]:
        """The finished runs with these settings, by seed; and the classifier that is asked for."""
        wanted = {name: value for name, value in settings.items() if name != "classifier"}
        found = [results for results in self.results if is_finished(results) and fits(results, wanted)]
        found.sort(key=lambda results: results["config"]["random_seed"])
        if not found:
            raise UsageError(f"no finished run with {settings}")
        if len({results["config"]["random_seed"] for results in found}) < len(found):
            raise UsageError(f"several runs of one seed with {settings}: say what tells them apart")
        return found, settings.get("classifier", found[0]["headline"])

    def phases(self, rows: Sequence[Sequence[Any]], **common: Any) -> str:
        """A table with a row per (title, settings, settings, ...): accuracy after each phase, average and forgetting,
        with 95% confidence intervals, and the paper's average."""
        body = [self.phases_row(title, merged(common, *settings)) for title, *settings in rows]
        numbers = [str(i) for i in range(len(body[0]) - 5)]
        return render_table([["", *numbers, "average", "forgetting", "n", "the paper's average"], *body], "markdown")

    def phases_row(self, title: str, settings: Settings) -> list[str]:
        """The cells of a row of `phases`."""
        runs, name = self.runs(settings)
        curves = zip(*([phase["accuracy"][name] for phase in results["phases"]] for results in runs), strict=True)
        cells = [f"{interval(values)[0]:.2f}" for values in curves]
        summaries = [[results["summary"][metric][name] for results in runs] for metric in METRICS[:2]]
        return [title, *cells, *map(mean, summaries), str(len(runs)), percent(self.in_paper(runs[0], name))]

    def in_paper(self, results: Results, classifier: str) -> float | None:
        """The paper's average accuracy; None for a classifier that it does not have. LwF and iCaRL are one training."""
        config = results["config"]
        if config["baseline"] == "icarl" and classifier == "cnn":
            config = config | {"baseline": "lwf"}
        elif classifier != results["headline"]:
            return None
        return paper_number(self.paper, config, "all")

    def gains(self, rows: Sequence[Sequence[Any]], **common: Any) -> str:
        """A table with a row per (title, [settings, ...], [settings of what it is compared with, ...]): differences in
        average accuracy, forgetting and last accuracy between runs of the same seed, with 95% confidence intervals."""
        table = [["", "average accuracy", "forgetting", "last accuracy", "n"]]
        for title, one, other in rows:
            sides = [self.by_seed(merged(common, *parts)) for parts in (one, other)]
            seeds = sorted(sides[0].keys() & sides[1].keys())
            if not seeds:
                raise UsageError(f"no seed with both {one} and {other}")
            pairs = [map(operator.sub, sides[0][seed], sides[1][seed]) for seed in seeds]
            table.append([title, *(mean(values, "+") for values in zip(*pairs, strict=True)), str(len(seeds))])
        return render_table(table, "markdown")

    def by_seed(self, settings: Settings) -> dict[int, list[float]]:
        """seed -> the METRICS of its run."""
        runs, name = self.runs(settings)
        return {run["config"]["random_seed"]: [run["summary"][m][name] for m in METRICS] for run in runs}

    def average(self, *parts: Settings, metric: str = "average_accuracy", **settings: Any) -> str:
        """Mean and confidence interval of a number of the summary, for use in a sentence."""
        runs, name = self.runs(merged(settings, *parts))
        return mean([results["summary"][metric][name] for results in runs])

    def provenance(self, **settings: Any) -> str:
        """Machine, commits and number of the runs with these settings, one sentence."""
        facts = [results["environment"] for results in self.results if fits(results, settings)]
        machines = unique(f"{f['device']}, {f['threads']} of {f['cpu_count']} cores, torch {f['torch']}" for f in facts)
        commits = unique(f["commit"][:10] + ("-dirty" if f["commit"].endswith("-dirty") else "") for f in facts)
        return f"{len(facts)} runs; {'; '.join(machines)}; commits {', '.join(commits)}"

    def number(self, file: str, path: str) -> Any:
        """A value of any JSON file in results/: `path` is its keys and indices, with dots between them."""
        content = json.loads((self.folder / file).read_text(encoding="utf-8"))
        return reduce(lambda value, key: value[int(key) if isinstance(value, list) else key], path.split("."), content)


def fits(results: Results, settings: Settings) -> bool:
    """Whether a run has these settings."""
    facts = {"tuned": results["config"]["finetune_epochs"] > 0, "device": results["environment"].get("device")}
    if unknown := settings.keys() - SETTINGS.keys() - facts.keys():
        raise UsageError(f"no setting of a run is called {', '.join(sorted(unknown))}")
    return all((results["config"] | facts).get(name) == value for name, value in settings.items())


def merged(*parts: Settings) -> Settings:
    """All of these settings; later ones win."""
    return reduce(operator.or_, parts)


def mean(values: Sequence[float], sign: str = "") -> str:
    """Mean and, of several values, half the width of its 95% confidence interval (Student's t)."""
    middle, half = interval(values)
    return f"{middle:{sign}.2f}" + ("" if half is None else f" +- {half:.2f}")


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def page(folder: Path) -> str:
    """The text of README.md for this folder of results. Raises UsageError for a wrong call or file."""
    loader, calls = jinja2.FileSystemLoader(folder), Page(folder)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    public = {name: getattr(calls, name) for name in ("phases", "gains", "average", "provenance", "number")}
    try:
        return environment.get_template("README.md.j2").render(public, merged=merged)
    except (jinja2.TemplateError, LookupError, TypeError, ValueError, OSError) as error:
        raise UsageError(f"{folder / 'README.md.j2'}: {type(error).__name__}: {error}") from error


@command("results_page.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    write_if_new(RESULTS / "README.md", page(RESULTS).encode())


if __name__ == "__main__":
    sys.exit(main())
