"""Write results/README.md from its template and the results beside it: every number in a table is read from a file.

    python scripts/benchmark/results_page.py

The template, results/README.md.j2, is Markdown in which `{{ ... }}` calls the public methods of `Page`: Jinja2. Results
are chosen by their settings, never by the names of their files. Exit status: 0 done, 2 a call or a file is wrong.
"""

import json
import operator
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jinja2

from mnemonics.config.fields import SETTINGS
from mnemonics.engine.files import write_if_new
from mnemonics.reporting.paper import load_paper, paper_number
from mnemonics.reporting.read import read_results, results_files
from mnemonics.reporting.tables import finished, interval, markdown
from mnemonics.reporting.text import Results, percent

RESULTS = Path(__file__).resolve().parents[2] / "results"
Settings = dict[str, Any]


class Page:
    """What a template can call. Settings are those of config.json, and "tuned": whether there was any fine-tuning, and
    "device"; "classifier" is "cnn" or "nme", by default the headline one. Raises ValueError where nothing fits."""

    def __init__(self, folder: Path):
        self.folder, self.paper = folder, load_paper()
        self.results = {path: read_results(path) for path in results_files(folder)}

    def runs(self, **settings: Any) -> list[Results]:
        """The finished runs with these settings, by seed."""
        found = [results for results in self.results.values() if finished(results) and fits(results, settings)]
        if not found:
            raise ValueError(f"no finished run with {settings}")
        seeds = [results["config"]["random_seed"] for results in found]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"several runs of one seed with {settings}: say what tells them apart")
        return sorted(found, key=lambda results: results["config"]["random_seed"])

    def phases(self, rows: Sequence[Sequence[Any]], **common: Any) -> str:
        """A table with a row per (title, settings, settings, ...): accuracy after each phase, average and forgetting,
        with 95% confidence intervals, and the paper's average."""
        body = [self.phases_row(title, merged(common, *settings)) for title, *settings in rows]
        numbers = [str(i) for i in range(len(body[0]) - 5)]
        return "\n".join(markdown([["", *numbers, "average", "forgetting", "n", "the paper's average"], *body]))

    def phases_row(self, title: str, settings: Settings) -> list[str]:
        runs = self.runs(**without_classifier(settings))
        name = settings.get("classifier", runs[0]["headline"])
        curves = zip(*([phase["accuracy"][name] for phase in results["phases"]] for results in runs), strict=True)
        cells = [f"{interval(values)[0]:.2f}" for values in curves]
        cells += [mean(summaries(runs, metric, name)) for metric in ("average_accuracy", "forgetting")]
        return [title, *cells, str(len(runs)), percent(self.in_paper(runs[0], name))]

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
        body = []
        for title, one, other in rows:
            pairs = self.pairs(merged(common, *one), merged(common, *other))
            cells = [mean(differences, sign="+") for differences in zip(*pairs, strict=True)]
            body.append([title, *cells, str(len(pairs))])
        header = ["", "average accuracy", "forgetting", "last accuracy", "n"]
        return "\n".join(markdown([header, *body]))

    def pairs(self, one: Settings, other: Settings) -> list[list[float]]:
        """For each seed that both have: [difference in average accuracy, in forgetting, in last accuracy]."""
        sides = []
        for settings in (one, other):
            runs = self.runs(**without_classifier(settings))
            name = settings.get("classifier", runs[0]["headline"])
            metrics = ("average_accuracy", "forgetting", "last_accuracy")
            sides.append({run["config"]["random_seed"]: [run["summary"][m][name] for m in metrics] for run in runs})
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if not seeds:
            raise ValueError(f"no seed with both {one} and {other}")
        return [[a - b for a, b in zip(sides[0][seed], sides[1][seed], strict=True)] for seed in seeds]

    def average(self, *parts: Settings, metric: str = "average_accuracy", **settings: Any) -> str:
        """Mean and confidence interval of a number of the summary, for use in a sentence."""
        chosen = merged(settings, *parts)
        runs = self.runs(**without_classifier(chosen))
        return mean(summaries(runs, metric, chosen.get("classifier", runs[0]["headline"])))

    def provenance(self, **settings: Any) -> str:
        """Machine, commits and number of the runs with these settings, one sentence."""
        found = [results for results in self.results.values() if fits(results, settings)]
        facts = [results["environment"] for results in found]
        machines = unique(f"{f['device']}, {f['threads']} of {f['cpu_count']} cores, torch {f['torch']}" for f in facts)
        commits = unique(f["commit"][:10] + ("-dirty" if f["commit"].endswith("-dirty") else "") for f in facts)
        return f"{len(found)} runs; {'; '.join(machines)}; commits {', '.join(commits)}"

    def number(self, file: str, path: str) -> Any:
        """A value of any JSON file in results/: `path` is its keys and indices, with dots between them."""
        content = json.loads((self.folder / file).read_text(encoding="utf-8"))
        return reduce(lambda value, key: value[int(key) if isinstance(value, list) else key], path.split("."), content)


def fits(results: Results, settings: Settings) -> bool:
    """Whether a run has these settings."""
    facts = {"tuned": results["config"]["finetune_epochs"] > 0, "device": results["environment"].get("device")}
    unknown = settings.keys() - SETTINGS.keys() - facts.keys()
    if unknown:
        raise ValueError(f"no setting of a run is called {', '.join(sorted(unknown))}")
    return all((results["config"] | facts).get(name) == value for name, value in settings.items())


def merged(*parts: Settings) -> Settings:
    """All of these settings; later ones win."""
    return reduce(operator.or_, parts)


def without_classifier(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name != "classifier"}


def summaries(runs: Sequence[Results], metric: str, classifier: str) -> list[float]:
    return [results["summary"][metric][classifier] for results in runs]


def mean(values: Sequence[float], sign: str = "") -> str:
    """Mean and, of several values, half the width of its 95% confidence interval (Student's t)."""
    middle, half = interval(values)
    return f"{middle:{sign}.2f}" + ("" if half is None else f" +- {half:.2f}")


def unique(values: Any) -> list[str]:
    return list(dict.fromkeys(values))


def page(folder: Path) -> str:
    """The text of README.md for this folder of results. Raises ValueError (one line) for a wrong call or file."""
    loader = jinja2.FileSystemLoader(folder)
    settings = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True, "autoescape": False}
    calls = Page(folder)
    public: dict[str, Callable] = {"merged": merged}
    public |= {name: getattr(calls, name) for name in ("phases", "gains", "average", "provenance", "number")}
    try:
        return jinja2.Environment(loader=loader, **settings).get_template("README.md.j2").render(public)
    except (jinja2.TemplateError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / 'README.md.j2'}: {type(error).__name__}: {error}") from error


def main() -> int:
    """Returns the exit status."""
    try:
        text = page(RESULTS)
    except (ValueError, OSError) as error:
        print(f"results_page.py: {error}", file=sys.stderr)
        return 2
    write_if_new(RESULTS / "README.md", text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
