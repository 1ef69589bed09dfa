"""What a run measured, as text: the tables of one run and of several, and the words for what each number is.

Functions of the dict in `results.json`. All accuracies are in percent. `render_table` renders every table.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from typing import Any

from mnemonics.baselines import BASELINES
from mnemonics.config.fields import SETTINGS
from mnemonics.config.presets import budget
from mnemonics.protocol import phase_sizes

Results = dict[str, Any]  # the content of results.json
Rows = list[list[Any]]  # the cells of a table, the first row its header
CLASSIFIERS = {
    "cnn": "CNN = the class with the largest output of the network",
    "nme": "NME = nearest mean of exemplars: the class whose mean exemplar feature is nearest to the image's (cosine)",
    "ncm": "NCM = nearest class mean: the same with means over all training images, which a learner would no longer "
    "have; an upper bound",
}
SUMMARY = {  # key of the summary -> what it is called, with its unit
    "average_accuracy": "average accuracy %",
    "last_accuracy": "last accuracy %",
    "forgetting": "forgetting, points",
}
AVERAGE = (
    "average accuracy = mean over {phases} phases, phase 0 included, of the accuracy on the test images "
    "of all classes seen so far"
)
FORGETTING = (
    "forgetting = accuracy on the test images of the phase-0 classes of the first model minus that of the "
    "last; lower is better"
)
OF_SEVERAL = (  # what the numbers of several runs are
    "accuracies in percent of the headline classifier (where there are others: *), after any fine-tuning on the "
    "exemplars; n = 1 run per row",
    AVERAGE.format(phases="all finished"),
    FORGETTING,
)


def render_table(rows: Sequence[Sequence[Any]], style: str = "text", left: int = 0) -> str:
    """The one renderer of tables (the page has the same rows in its template).

    Args:
        rows: cells, the first row is the header (in "csv", None is an empty cell).
        style: "text" (columns as wide as their widest cell), "markdown" (the same, padded) or "csv".
        left: of "text", how many columns are flush left; the others are flush right.
    """
    if style == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(rows)
        return file.getvalue()
    rows = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if style == "markdown":
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
    flush = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    lines = ["  ".join(pad(*cell) for pad, *cell in zip(flush, row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def with_header(rows: Sequence[dict[str, Any]]) -> Rows:
    """The rows of a table, each given as column -> cell, below their header; nothing for no rows."""
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


# words


def classifiers(results: Results) -> list[str]:
    """The classifiers that were measured: "cnn", "nme" and, where asked for, "ncm"."""
    return [key for key in results["phases"][0]["accuracy"] if not key.endswith("_before_finetune")]


def starred(results: Results) -> dict[str, str]:
    """What each classifier is called in a table: the headline one with a star."""
    return {name: name.upper() + "*" * (name == results["headline"]) for name in classifiers(results)}


def percent(value: float | None) -> str:
    """Two decimals; "-" where nothing was measured, as before fine-tuning in a phase that has none."""
    return "-" if value is None else f"{value:.2f}"


def in_words(value: Any) -> str:
    """The value of a setting."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


def title_of(results: Results) -> str:
    """Which run this is, in one line."""
    config = results["config"]
    kept = "without exemplars" if config["nb_protos"] == 0 else f"with {config['exemplars']} exemplars"
    learner = f"{config['dataset']}, {config['baseline']} {kept}"
    return f"{learner}, training seed {config['random_seed']}, {order_of(config)}"


def order_of(config: dict[str, Any]) -> str:
    """Where the class order comes from."""
    own = config.get("class_order")
    return f"class order {own}" if own else f"class order seed {config['order_seed']}"


def is_finished(results: Results) -> bool:
    return len(results["phases"]) == results["config"]["nb_phases"] + 1


def finished_phases(results: Results) -> str:
    """How many phases are finished of all, e.g. "3 of 6"."""
    return f"{len(results['phases'])} of {results['config']['nb_phases'] + 1}"


def duration(seconds: float) -> str:
    """About how long something takes, e.g. "1.7 hours"."""
    sizes = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
    unit = next((unit for unit, size in sizes.items() if seconds < 99 * size), "days")
    return f"{seconds / sizes[unit]:.2g} {unit}"


def outlook(results: Results) -> str:
    """How far an unfinished run is, and how long the rest will take."""
    left, done = seconds_left(results), len(results["phases"])
    after = f" and all that are left {duration(sum(left))}" if len(left) > 1 else ", and is the last one"
    return f"{finished_phases(results)} phases are finished; phase {done} takes about {duration(left[0])}{after}"


def seconds_left(results: Results) -> list[float]:
    """An estimate for each phase that is left: its training images at the seconds per image of the phases so far. Phase
    0 is unlike the others, and counts only while there is no other one."""
    config, phases, last = results["config"], results["phases"], results["phases"][-1]
    measured = phases[1:] or phases
    images = sum(sum(phase["train_images"].values()) for phase in measured)
    pace = sum(sum(phase["seconds"].values()) for phase in measured) / images
    counts = [results["data"]["train_images"][class_id] for class_id in results["class_order"]]
    sizes = phase_sizes(len(counts), None, config["nb_cl_fg"], config["nb_cl"])
    in_total, kept = "total" in budget(config)[1], last["exemplars_per_class"]["max"]
    left = []
    for first, seen in itertools.pairwise(list(itertools.accumulate(sizes))[len(phases) - 1 :]):
        stored = kept * (last["classes_seen"] if in_total else first)
        of_baseline = {"exemplars": stored, "nothing": 0}  # others rehearse all earlier images
        old = of_baseline.get(BASELINES[config["baseline"]].rehearses, sum(counts[:first]))
        left.append(pace * (sum(counts[first:seen]) + old))
    return left


def definitions(results: Results) -> list[str]:
    """The lines under the tables of a run: exactly what its numbers are."""
    config, (words, flag) = results["config"], budget(results["config"])
    tuning = "without fine-tuning on the exemplars"
    if config["finetune_epochs"]:
        tuning = 'after fine-tuning on the exemplars; "before" = before it'
    lines = [
        "train images = images of the new classes + of old ones (exemplars, unless the baseline is a bound)",
        f"exemplar budget: {words} (--{flag})",
        AVERAGE.format(phases=f"all {len(results['phases'])}" if is_finished(results) else finished_phases(results)),
        FORGETTING,
        f"{tuning}; n runs = 1; * = headline classifier",
    ]
    if "ncm" in classifiers(results):
        lines.append("NCM reads all training data, which a learner would no longer have: an upper bound")
    return lines


# the table of one run


def phase_rows(results: Results) -> Rows:
    """A row per finished phase."""
    shown, headline, rows = starred(results), results["headline"], []
    columns = {f"{title} %": name for name, title in shown.items()}
    if results["config"]["finetune_epochs"]:
        columns |= {f"{title} before %": f"{name}_before_finetune" for name, title in shown.items()}
    for phase in results["phases"]:
        kept, images = phase["exemplars_per_class"], phase["train_images"]
        row = {
            "phase": phase["phase"],
            "classes": phase["classes_seen"],
            "train images": f"{images['new']} + {images['old']}",
            "exemplars/class": f"{kept['min']}-{kept['max']}" if kept["min"] < kept["max"] else kept["min"],
            **{title: percent(phase["accuracy"].get(name)) for title, name in columns.items()},
            f"phase-0 classes {shown[headline]} %": percent(phase["phase0_accuracy"][headline]),
            "seconds": f"{sum(phase['seconds'].values()):.1f}",
        }
        rows.append(row)
    return with_header(rows)


def summary_rows(results: Results) -> Rows:
    """A row per number of the summary, a column per classifier."""
    summary, shown = results["summary"], starred(results)
    rows = [[title, *(percent(summary[key].get(name)) for name in shown)] for key, title in SUMMARY.items()]
    return [["", *shown.values()], *rows]


def results_table(results: Results) -> str:
    """A row per finished phase, the summary per classifier, and what each number means."""
    tables = [render_table(phase_rows(results)), render_table(summary_rows(results), left=1)]
    return "\n\n".join([title_of(results), *tables, "\n".join(definitions(results))])


# the table of several runs


def comparison_rows(runs: Sequence[tuple[str, Results]]) -> Rows:
    """A row per run: accuracy of its headline classifier after each phase, average accuracy and forgetting. Runs with
    fewer phases are padded with blanks."""
    longest, rows = max(len(results["phases"]) for _, results in runs), []
    for name, results in runs:
        headline, summary = results["headline"], results["summary"]
        accuracies = [percent(phase["accuracy"][headline]) for phase in results["phases"]]
        accuracies += [""] * (longest - len(accuracies))
        row = {
            "run": name if is_finished(results) else f"{name} ({finished_phases(results)} phases)",
            "exemplars": budget(results["config"])[0],
            "classifier": headline.upper(),
            **{f"phase {i}": accuracy for i, accuracy in enumerate(accuracies)},
            "average": percent(summary["average_accuracy"][headline]),
            "forgetting": percent(summary["forgetting"][headline]),
        }
        rows.append(row)
    return with_header(rows)


def differing_settings(configs: Sequence[dict[str, Any]]) -> Rows:
    """A row for each setting in which these runs differ, without a header: its name and the value of each run."""
    names = dict.fromkeys(name for config in configs for name in config)
    rows = [[name, *(in_words(config.get(name)) for config in configs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def comparison_table(runs: Sequence[tuple[str, Results]]) -> str:
    """`comparison_rows` of (name, content of results.json), and the settings that can change a number in which these
    runs differ."""
    lines = [render_table(comparison_rows(runs), left=3), "", *OF_SEVERAL]
    for name, *values in differing_settings([results["config"] for _, results in runs]):
        if name not in SETTINGS or SETTINGS[name].affects_results:
            lines.append(f"the runs differ in {name}: {' | '.join(values)}")
    return "\n".join(lines)


def phase_line(result: dict[str, Any]) -> str:
    """One line on a phase, as results.json or evaluation.json has it."""
    accuracies = {name: value for name, value in result["accuracy"].items() if not name.endswith("_before_finetune")}
    percents = ", ".join(f"{name.upper()} {value:.2f}%" for name, value in accuracies.items())
    seconds = f"; {sum(result['seconds'].values()):.1f} s" if "seconds" in result else ""
    return f"phase {result['phase']}: {result['classes_seen']} classes, {percents}{seconds}"
