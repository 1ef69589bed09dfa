"""What a run measured, as plain text: tables, and the words for what each number is.

Pure functions of the dict in `results.json`. All accuracies are in percent.
"""

from collections.abc import Sequence
from typing import Any

from mnemonics.config.fields import SETTINGS

Results = dict[str, Any]  # the content of results.json
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


def starred(results: Results) -> dict[str, str]:
    """What each classifier is called in a table: the headline one with a star."""
    return {name: name.upper() + "*" * (name == results["headline"]) for name in classifiers(results)}


def phase_rows(results: Results) -> list[list[str]]:
    """The table of one run, a row per finished phase; the first row is its header."""
    shown, headline = starred(results), results["headline"]
    columns = {name: f"{title} %" for name, title in shown.items()}
    if results["config"]["finetune_epochs"]:
        columns |= {f"{name}_before_finetune": f"{title} before %" for name, title in shown.items()}
    phase0 = f"phase-0 classes {shown[headline]} %"
    rows = [["phase", "classes", "train images", "exemplars/class", *columns.values(), phase0, "seconds"]]
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
    return rows


def title_of(results: Results) -> str:
    """Which run this is, in one line."""
    config = results["config"]
    return (
        f"{config['dataset']}, {config['baseline']} with {config['exemplars']} exemplars, "
        f"training seed {config['random_seed']}, class order seed {config['order_seed']}"
    )


def results_table(results: Results) -> str:
    """The table of one run: a row per finished phase, the summary per classifier, and what each number means.

    Args:
        results: content of results.json with at least one finished phase.
    """
    summary = [
        [title, *(f"{shown} {percent(results['summary'][key].get(name))}" for name, shown in starred(results).items())]
        for key, title in SUMMARY.items()
    ]
    table, lines = aligned(phase_rows(results)), definitions(results)
    return "\n".join([title_of(results), "", *table, "", *aligned(summary, left=1), "", *lines])


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
        if len(set(values)) > 1 and (key not in SETTINGS or SETTINGS[key].affects_results):
            lines.append(f"the runs differ in {key}: {' | '.join(values)}")
    return "\n".join(lines)
