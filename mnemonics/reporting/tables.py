"""Finished runs beside the paper's numbers: a row per set of runs that differ in their seed only, as Markdown and CSV.

Everything here is a function of what results.json files hold. Accuracies are in percent, forgetting and differences in
points.
"""

import json
import math
import operator
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mnemonics.engine.errors import UsageError
from mnemonics.reporting import paper, text
from mnemonics.reporting.paper import adjusted, paper_number, place
from mnemonics.reporting.text import Results, percent

Group = Sequence[Results]  # runs that differ in their seed only, in the order of their seeds
Row = dict[str, Any]  # one line of the CSV file
# what the first columns of a row are called in Markdown
LABELS = ["data", "N", "baseline", "exemplars", "budget", "weight transfer"]
LABELS += ["fine-tuning epochs", "classifier", "class order", "n"]
METRICS = ("average_accuracy", "forgetting", "last_accuracy")  # in the order of the columns


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval by Student's t; None for a single value."""
    if len(values) == 1:
        return values[0], None
    from scipy import stats  # 60 MB that a single run need not spend

    t = stats.t.ppf(0.975, len(values) - 1)
    return statistics.fmean(values), float(t) * statistics.stdev(values) / math.sqrt(len(values))


def plus_minus(mean: float, half: float | None, sign: str = "") -> str:
    """What `interval` gives, with two decimals."""
    return f"{mean:{sign}.2f}" + ("" if half is None else f" +- {half:.2f}")


def over_seeds(runs: Group) -> str:
    """Mean and confidence interval of each number in the summary of runs that differ in their seed only."""
    seeds = ", ".join(str(results["config"]["random_seed"]) for results in runs)
    lines = [f"{len(runs)} runs, training seeds {seeds}: mean +- half the width of the 95% confidence interval"]
    for metric, by_classifier in runs[0]["summary"].items():
        cells = []
        for name in by_classifier:
            values = [results["summary"][metric][name] for results in runs]
            cells.append(f"{name.upper()} {plus_minus(*interval(values))}")
        lines.append(f"{metric.replace('_', ' ')}: {', '.join(cells)}")
    return "\n".join(lines)


# rows


def grouped(runs: Iterable[tuple[str, Results]]) -> tuple[list[Group], list[str]]:
    """Finished runs that differ in their seed only, in the order of their seeds; and, in words, the runs left out: the
    unfinished ones, and those for which there was one with the same settings and seed before (counting it twice would
    make the interval too narrow)."""
    groups: dict[tuple, dict[int, tuple[str, Results]]] = {}
    left = []
    for name, results in runs:
        if not text.is_finished(results):
            left.append(f"{name}: unfinished, {text.finished_phases(results)} phases")
            continue
        config = results["config"]
        data = results.get("data", {}).get("fingerprint") or paper.images_per_class(results)
        amp = config.get("amp", "auto").replace("auto", results["environment"]["device"].split(":")[0])
        seeds = groups.setdefault((json.dumps(paper.settings(config) | {"amp": amp}), data), {})
        first, before = seeds.setdefault(config["random_seed"], (name, results))
        if before is not results:
            same = "the same" if results["summary"] == before["summary"] else "OTHER"
            left.append(f"{name}: settings and seed of {first}, {same} numbers")
    if len({settings for settings, _ in groups}) < len(groups):
        left.append("nothing, but rows with equal settings are of different data, or do not say of which: not averaged")
    return [[seeds[seed][1] for seed in sorted(seeds)] for seeds in groups.values()], left


def label(group: Group, table: str) -> Row:
    """The columns that say which runs these are, and all that is not as in the paper."""
    results = group[0]
    config = results["config"]
    bound, where = paper.is_bound(config), place(config, table)
    exemplars = {"finetune": "none", "joint": "all data"}.get(config["baseline"], config["exemplars"])
    if not bound and (config["exemplars"] == "mnemonics" or config["finetune_epochs"] or adjusted(config)):
        exemplars += ", adjusted" if adjusted(config) else ", not adjusted"
    notes = paper.differences(results)
    if where is None:
        notes.insert(0, "no such row in the paper's tables 1 and 2")
    elif paper_number(config, table) is None:
        notes.insert(0, f"no number in the paper for {config['dataset']}, N = {config['nb_phases']}")
    if where is not None and where[0] != "table2" and config["exemplars"] == "mnemonics" and not adjusted(config):
        notes.append("old exemplars not adjusted (paper: adjusted)")
    return {
        "dataset": config["dataset"],
        "nb_phases": config["nb_phases"],
        "baseline": config["baseline"],
        "exemplars": exemplars,
        "budget": "-" if bound else text.budget(config)[0],
        "weight_transfer": text.in_words(bool(config.get("weight_transfer"))),
        "finetune_epochs": config["finetune_epochs"],
        "classifier": results["headline"].upper(),
        "order_seed": config.get("class_order") or config["order_seed"],
        "n": len(group),
        "random_seeds": " ".join(str(results["config"]["random_seed"]) for results in group),
        "paper_row": " ".join(where) if where else "",
        "differences_from_paper": "; ".join(notes),
    }


def measured(name: str, values: Sequence[float], *paper_value: float | None) -> Row:
    """Mean, confidence interval and, where the paper may have a number, that and mean - paper; four decimals."""
    mean, half = interval(values)
    row = {name: mean, f"{name}_ci95": half}
    for number in paper_value:
        row |= {f"{name}_paper": number, f"{name}_difference": None if number is None else mean - number}
    return {key: None if value is None else round(value, 4) for key, value in row.items()}


def summary_row(group: Group, table: str) -> Row:
    """One row of tables 1 and 2."""
    row, config, headline = label(group, table), group[0]["config"], group[0]["headline"]
    for metric in METRICS:
        values = [results["summary"][metric][headline] for results in group]
        theirs = [] if metric == "last_accuracy" else [paper_number(config, table, metric)]
        row |= measured(metric, values, *theirs)
    return row


def curve_rows(group: Group) -> list[Row]:
    """One row of figure 4 for each phase."""
    first, headline = group[0], group[0]["headline"]
    curve = paper_number(first["config"], "figure4") or [None] * len(first["phases"])
    return [
        label(group, "figure4")
        | {"phase": i, "classes_seen": phase["classes_seen"]}
        | measured("accuracy", [results["phases"][i]["accuracy"][headline] for results in group], curve[i])
        for i, phase in enumerate(first["phases"])
    ]


def position(group: Group, table: str) -> tuple:
    """Sort key: the paper's order of rows within a data set, N ascending; what is not in the paper comes last."""
    config = group[0]["config"]
    dataset, where = config["dataset"], place(config, table)
    return (
        paper_number(config, table) is None,
        [*paper.DATASETS, dataset].index(dataset),
        dataset,
        paper.ORDER.index(where) if where else len(paper.ORDER),
        config["nb_phases"],
    )


# Markdown and CSV


def tabulate(runs: Sequence[tuple[str, Results]], table: str) -> tuple[str, str]:
    """The table and what its numbers are, as Markdown and as CSV.

    Args:
        runs: (name, content of results.json) of each run.
        table: "all", or "table1", "table2", "figure4": only the runs that belong to a row of it.
    Raises:
        UsageError: if no finished run belongs to the table.
    """
    groups, left = grouped(runs)
    shown = [group for group in groups if table == "all" or place(group[0]["config"], table)]
    if others := sum(map(len, groups)) - sum(map(len, shown)):
        left.append(f"{others} finished runs that belong to no row of {table} (--table all shows them)")
    if not shown:
        raise UsageError(f"no finished run for --table {table}: {'; '.join(left) or 'no run at all'}")
    shown.sort(key=lambda group: position(group, table))
    curves = table == "figure4"
    blocks = [curve_rows(group) if curves else [summary_row(group, table)] for group in shown]
    rows = [row for block in blocks for row in block]
    notes = [note for note in dict.fromkeys(row["differences_from_paper"] for row in rows) if note]
    parts = [curve_table(block, notes) for block in blocks] if curves else [summary_table(rows, notes)]
    parts += [listed(f"[{i}] {note}" for i, note in enumerate(notes, 1))] if notes else []
    parts += [listed([*explanations(table), *provenance(shown)])]
    parts += ["Left out:", listed(left)] if left else []
    return "\n\n".join(parts) + "\n", text.render_table(text.with_header(rows), "csv")


def listed(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def label_cells(row: Row, notes: Sequence[str]) -> dict[str, Any]:
    """Which runs a row is of: column -> cell."""
    note = row["differences_from_paper"]
    settings = f"see [{notes.index(note) + 1}]" if note else "paper's"
    return dict(zip(LABELS, row.values(), strict=False)) | {"settings": settings}


def number_cells(row: Row, name: str) -> list[str]:
    """Mean +- confidence interval; where the paper may have a number, that and the difference too."""
    cells = [plus_minus(row[name], row[f"{name}_ci95"])]
    if f"{name}_paper" in row:
        difference = row[f"{name}_difference"]
        cells += [percent(row[f"{name}_paper"])]
        cells += ["-" if difference is None else f"{round(difference, 2) + 0.0:+.2f}"]  # + 0.0: no "-0.00"
    return cells


def summary_table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    header = ["average accuracy %", "paper", "difference", "forgetting", "paper", "difference", "last accuracy %"]
    labels = text.with_header([label_cells(row, notes) for row in rows])
    numbers = [header, *([cell for metric in METRICS for cell in number_cells(row, metric)] for row in rows)]
    return text.render_table(list(map(operator.add, labels, numbers)), "markdown")


def curve_table(block: Sequence[Row], notes: Sequence[str]) -> str:
    """The phases of a set of runs, under a line that says which they are."""
    title = "; ".join(f"{column}: {cell}" for column, cell in label_cells(block[0], notes).items())
    header = ["phase", "classes seen", "accuracy %", "paper", "difference"]
    body = [[row["phase"], row["classes_seen"], *number_cells(row, "accuracy")] for row in block]
    return f"**{title}**\n\n{text.render_table([header, *body], 'markdown')}"


def explanations(table: str) -> list[str]:
    """What the numbers are."""
    which = {"all": "table 1 or, for rows that only it has, table 2", "table1": "table 1", "table2": "table 2"}
    source = paper.load_paper()["source"].partition(",")[0]
    curve = (
        "accuracy = on the test images of all classes seen so far; the paper's curves are read off its figure 4, where "
        "that of lucir+mnemonics on cifar100 averages at N = 10 and 25 to its number without adjusting (table 2)"
    )
    averages = [
        text.AVERAGE.format(phases="all N + 1"),
        f"{text.FORGETTING}. The paper's formula has the opposite sign, its printed values are positive: the same "
        "quantity",
        "last accuracy = accuracy after the last phase, on the test images of all classes",
    ]
    return [
        *([curve] if table == "figure4" else averages),
        "classifier: CNN = output of the network, NME = nearest mean of exemplars; after any fine-tuning",
        "n = number of runs, which differ in --random_seed only; +- half the width of the 95% confidence interval of "
        "their mean (Student's t), of several",
        f"paper = {source}, {which.get(table, 'figure 4')}; difference = here minus paper",
        "[1], [2], ... list all that is not as in the paper: such rows do not compare directly",
    ]


def provenance(groups: Sequence[Group]) -> list[str]:
    """On which machines and with which commits the runs were made."""
    machines, commits = Counter(), Counter()
    for made in (results["environment"] for group in groups for results in group):
        f = {"device": "unknown", "device_name": "unknown", "cpu_count": "?", "threads": "?", "torch": "?"} | made
        device = f"{f['device']} ({f['device_name']})"
        machines[f"{device}, {f['cpu_count']} CPUs, {f['threads']} threads, torch {f['torch']}"] += 1
        commits[f.get("commit", "unknown")] += 1
    return [
        f"{name}: {'; '.join(f'{value} (n = {n})' for value, n in counts.items())}"
        for name, counts in (("machine", machines), ("commit", commits))
    ]
