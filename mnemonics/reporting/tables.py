"""Finished runs beside the paper's numbers: a row per set of runs that differ in their seed only, as Markdown and CSV.

Everything here is a pure function of what results.json files hold and of `paper`, the content of
paper_results.json. Accuracies are in percent, forgetting and differences in points.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mnemonics.engine.errors import UsageError
from mnemonics.reporting import paper as facts
from mnemonics.reporting import text
from mnemonics.reporting.paper import adjusted, paper_number, place
from mnemonics.reporting.text import Results, percent

Row = dict[str, Any]  # one line of the CSV file
COLUMNS = {  # of tables 1 and 2 -> the key of a row
    "data": "dataset",
    "N": "nb_phases",
    "baseline": "baseline",
    "exemplars": "exemplars",
    "budget": "",
    "weight transfer": "weight_transfer",
    "fine-tuning epochs": "finetune_epochs",
    "classifier": "classifier",
    "class order": "order_seed",
    "n": "n",
}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval by Student's t; None for a single value."""
    if len(values) == 1:
        return values[0], None
    from scipy import stats  # 60 MB that a single run need not spend

    t = stats.t.ppf(0.975, len(values) - 1)
    return statistics.fmean(values), float(t) * statistics.stdev(values) / math.sqrt(len(values))


def over_seeds(runs: Sequence[Results]) -> str:
    """Mean and confidence interval of each number in the summary of runs that differ in their seed only."""
    seeds = ", ".join(str(results["config"]["random_seed"]) for results in runs)
    lines = [f"{len(runs)} runs, training seeds {seeds}: mean +- half the width of the 95% confidence interval"]
    for metric, by_classifier in runs[0]["summary"].items():
        cells = []
        for name in by_classifier:
            mean, half = interval([results["summary"][metric][name] for results in runs])
            cells.append(f"{name.upper()} {mean:.2f} +- {percent(half)}")
        lines.append(f"{metric.replace('_', ' ')}: {', '.join(cells)}")
    return "\n".join(lines)


# rows


def grouped(runs: Iterable[tuple[str, Results]]) -> tuple[list[list[Results]], list[str]]:
    """Finished runs that differ in their seed only, in the order of their seeds; and, in words, the runs left out: the
    unfinished ones, and those for which there was one with the same settings and seed before (counting it twice would
    make the interval too narrow)."""
    groups: dict[str, dict[int, tuple[str, Results]]] = {}
    left = []
    for name, results in runs:
        if not text.is_finished(results):
            left.append(f"{name}: unfinished, {text.finished_phases(results)} phases")
            continue
        config = results["config"]
        seeds = groups.setdefault(json.dumps([facts.settings(config), facts.images_per_class(results)]), {})
        first, before = seeds.setdefault(config["random_seed"], (name, results))
        if before is not results:
            same = "the same" if results["summary"] == before["summary"] else "OTHER"
            left.append(f"{name}: settings and seed of {first}, {same} numbers")
    return [[seeds[seed][1] for seed in sorted(seeds)] for seeds in groups.values()], left


def label(group: Sequence[Results], paper: dict, table: str) -> Row:
    """The columns that say which runs these are, and all that is not as in the paper."""
    results = group[0]
    config = results["config"]
    bound, where = facts.is_bound(config), place(config, table)
    may_adjust = not bound and (config["exemplars"] == "mnemonics" or config["finetune_epochs"] or adjusted(config))
    notes = facts.differences(results)
    if where is None:
        notes.insert(0, "no such row in the paper's tables 1 and 2")
    elif paper_number(paper, config, table) is None:
        notes.insert(0, f"no number in the paper for {config['dataset']}, N = {config['nb_phases']}")
    if where is not None and where[0] != "table2" and config["exemplars"] == "mnemonics" and not adjusted(config):
        notes.append("old exemplars not adjusted (paper: adjusted)")
    return {
        "dataset": config["dataset"],
        "nb_phases": config["nb_phases"],
        "baseline": config["baseline"],
        "exemplars": {"finetune": "none", "joint": "all data"}.get(config["baseline"], config["exemplars"]),
        "adjusted": ("yes" if adjusted(config) else "no") if may_adjust else "",
        "exemplars_per_class": None if bound else config["nb_protos"],
        "exemplars_in_total": None if bound else config["total_memory"],
        "weight_transfer": "on" if config.get("weight_transfer") else "off",
        "finetune_epochs": config["finetune_epochs"],
        "classifier": results["headline"].upper(),
        "order_seed": config["order_seed"],
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


def summary_row(group: Sequence[Results], paper: dict, table: str) -> Row:
    """One row of tables 1 and 2."""
    row, config, headline = label(group, paper, table), group[0]["config"], group[0]["headline"]
    for metric in ("average_accuracy", "forgetting", "last_accuracy"):
        values = [results["summary"][metric][headline] for results in group]
        theirs = [] if metric == "last_accuracy" else [paper_number(paper, config, table, metric)]
        row |= measured(metric, values, *theirs)
    return row


def curve_rows(group: Sequence[Results], paper: dict) -> list[Row]:
    """One row of figure 4 for each phase."""
    first, headline = group[0], group[0]["headline"]
    curve = paper_number(paper, first["config"], "figure4") or [None] * len(first["phases"])
    return [
        label(group, paper, "figure4")
        | {"phase": i, "classes_seen": phase["classes_seen"]}
        | measured("accuracy", [results["phases"][i]["accuracy"][headline] for results in group], curve[i])
        for i, phase in enumerate(first["phases"])
    ]


def position(group: Sequence[Results], paper: dict, table: str) -> tuple:
    """Sort key: the paper's order of rows within a data set, N ascending; what is not in the paper comes last."""
    config = group[0]["config"]
    where, datasets = place(config, table), [*facts.DATASETS, config["dataset"]]
    return (
        paper_number(paper, config, table) is None,
        datasets.index(config["dataset"]),
        config["dataset"],
        facts.ORDER.index(where) if where else len(facts.ORDER),
        config["baseline"],
        config["nb_phases"],
    )


# Markdown and CSV


def tabulate(runs: Sequence[tuple[str, Results]], paper: dict, table: str) -> tuple[str, str]:
    """The table and what its numbers are, as Markdown and as CSV.

    Args:
        runs: (name, content of results.json) of each run.
        paper: content of paper_results.json.
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
    shown.sort(key=lambda group: position(group, paper, table))
    curves = table == "figure4"
    blocks = [curve_rows(group, paper) if curves else [summary_row(group, paper, table)] for group in shown]
    rows = [row for block in blocks for row in block]
    notes = [note for note in dict.fromkeys(row["differences_from_paper"] for row in rows) if note]
    parts = [curve_table(block, notes) for block in blocks] if curves else [summary_table(rows, notes)]
    parts += [listed(f"[{i}] {note}" for i, note in enumerate(notes, 1))] if notes else []
    parts += [listed([*explanations(table, paper), *provenance(shown)])]
    parts += ["Left out:", listed(left)] if left else []
    return "\n\n".join(parts) + "\n", text.render_table([list(rows[0]), *(row.values() for row in rows)], "csv")


def listed(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def label_cells(row: Row, notes: Sequence[str]) -> dict[str, str]:
    """The cells that say which runs a row is of, by column."""
    cells = {column: str(row.get(key)) for column, key in COLUMNS.items()}
    each, total, note = row["exemplars_per_class"], row["exemplars_in_total"], row["differences_from_paper"]
    cells["exemplars"] += {"": "", "yes": ", adjusted", "no": ", not adjusted"}[row["adjusted"]]
    cells["budget"] = "-" if each is total is None else text.budget({"nb_protos": each, "total_memory": total})
    return cells | {"settings": f"see [{notes.index(note) + 1}]" if note else "paper's"}


def number_cells(row: Row, name: str) -> list[str]:
    """Mean +- confidence interval; where the paper may have a number, that and the difference too."""
    cells = [f"{row[name]:.2f} +- {percent(row[f'{name}_ci95'])}"]
    if f"{name}_paper" in row:
        difference = row[f"{name}_difference"]
        cells += [percent(row[f"{name}_paper"])]
        cells += ["-" if difference is None else f"{round(difference, 2) + 0.0:+.2f}"]  # + 0.0: no "-0.00"
    return cells


def summary_table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    header = ["average accuracy %", "paper", "difference", "forgetting", "paper", "difference", "last accuracy %"]
    metrics, labels = ("average_accuracy", "forgetting", "last_accuracy"), [label_cells(row, notes) for row in rows]
    numbers = [[cell for metric in metrics for cell in number_cells(row, metric)] for row in rows]
    body = [[*which.values(), *cells] for which, cells in zip(labels, numbers, strict=True)]
    return text.render_table([[*labels[0], *header], *body], "markdown")


def curve_table(block: Sequence[Row], notes: Sequence[str]) -> str:
    """The phases of a set of runs, under a line that says which they are."""
    title = "; ".join(map(": ".join, label_cells(block[0], notes).items()))
    header = ["phase", "classes seen", "accuracy %", "paper", "difference"]
    body = [[str(row["phase"]), str(row["classes_seen"]), *number_cells(row, "accuracy")] for row in block]
    return f"**{title}**\n\n{text.render_table([header, *body], 'markdown')}"


def explanations(table: str, paper: dict) -> list[str]:
    """What the numbers are."""
    which = {"all": "table 1 or, for rows that only it has, table 2", "table1": "table 1", "table2": "table 2"}
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
        "their mean (Student's t), - for a single run",
        f"paper = {paper['source'].partition(',')[0]}, {which.get(table, 'figure 4')}; difference = here minus paper",
        "[1], [2], ... list all that is not as in the paper: such rows do not compare directly",
    ]


def provenance(groups: Sequence[Sequence[Results]]) -> list[str]:
    """On which machines and with which commits the runs were made."""
    made = [results["environment"] for group in groups for results in group]
    machines = [
        f"{f.get('device', 'unknown')} ({f.get('device_name', 'unknown')}), {f.get('cpu_count', '?')} CPUs, "
        f"{f.get('threads', '?')} threads, torch {f.get('torch', '?')}"
        for f in made
    ]
    commits = [str(f.get("commit", "unknown")) for f in made]
    return [
        f"{name}: {'; '.join(f'{value} (n = {values.count(value)})' for value in dict.fromkeys(values))}"
        for name, values in (("machine", machines), ("commit", commits))
    ]
