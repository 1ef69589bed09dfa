"""Finished runs beside the paper's numbers: a row per set of runs that differ in their seed only, as Markdown and CSV.

Everything here is a pure function of what results.json files hold and of `paper`, the content of
paper_results.json. Accuracies are in percent, forgetting and differences in points.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mnemonics.config.fields import BOUNDS
from mnemonics.reporting.paper import (
    DATASETS,
    ORDER,
    adjusted,
    differences,
    images_per_class,
    paper_number,
    place,
    settings,
)
from mnemonics.reporting.text import AVERAGE, FORGETTING, Results, percent

Row = dict[str, Any]  # one line of the CSV file
COLUMNS = (
    *("data", "N", "baseline", "exemplars", "budget", "weight transfer", "fine-tuning epochs", "classifier"),
    *("class order", "n", "settings"),
)


def finished(results: Results) -> bool:
    return len(results["phases"]) == results["config"]["nb_phases"] + 1


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% confidence interval by Student's t; None for a single value."""
    if len(values) == 1:
        return values[0], None
    from scipy import stats  # 60 MB that a single run need not spend

    t = stats.t.ppf(0.975, len(values) - 1)
    return statistics.fmean(values), float(t) * statistics.stdev(values) / math.sqrt(len(values))


# rows


def grouped(runs: Iterable[tuple[str, Results]]) -> tuple[list[list[Results]], list[str]]:
    """Runs that differ in their seed only, in the order of their seeds; and, in words, the runs left out because one
    with the same settings and seed came before (counting it twice would make the interval too narrow)."""
    groups: dict[str, dict[int, tuple[str, Results]]] = {}
    repeated = []
    for name, results in runs:
        seeds = groups.setdefault(json.dumps([settings(results["config"]), images_per_class(results)]), {})
        seed = results["config"]["random_seed"]
        if seed in seeds:
            same = "the same" if results["summary"] == seeds[seed][1]["summary"] else "OTHER"
            repeated.append(f"{name}: settings and seed of {seeds[seed][0]}, {same} numbers")
        else:
            seeds[seed] = (name, results)
    return [[seeds[seed][1] for seed in sorted(seeds)] for seeds in groups.values()], repeated


def label(group: Sequence[Results], paper: dict, table: str) -> Row:
    """The columns that say which runs these are, and all that is not as in the paper."""
    results = group[0]
    config = results["config"]
    bound, where = config["baseline"] in BOUNDS, place(config, table)
    may_adjust = not bound and (config["exemplars"] == "mnemonics" or config["finetune_epochs"] or adjusted(config))
    notes = differences(results)
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


def measured(name: str, values: Sequence[float], paper_value: float | None) -> Row:
    """Mean, confidence interval, the paper's number and mean - paper, rounded to four decimals."""
    mean, half = interval(values)
    difference = None if paper_value is None else mean - paper_value
    row = {name: mean, f"{name}_ci95": half, f"{name}_paper": paper_value, f"{name}_difference": difference}
    return {key: None if value is None else round(value, 4) for key, value in row.items()}


def summary_row(group: Sequence[Results], paper: dict, table: str) -> Row:
    """One row of tables 1 and 2."""
    row, config, headline = label(group, paper, table), group[0]["config"], group[0]["headline"]
    for metric in ("average_accuracy", "forgetting"):
        values = [results["summary"][metric][headline] for results in group]
        row |= measured(metric, values, paper_number(paper, config, table, metric))
    mean, half = interval([results["summary"]["last_accuracy"][headline] for results in group])
    return row | {"last_accuracy": round(mean, 4), "last_accuracy_ci95": None if half is None else round(half, 4)}


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
    where, datasets = place(config, table), [*DATASETS, config["dataset"]]
    return (
        paper_number(paper, config, table) is None,
        datasets.index(config["dataset"]),
        config["dataset"],
        ORDER.index(where) if where else len(ORDER),
        config["baseline"],
        config["nb_phases"],
    )


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


# Markdown and CSV


def tabulate(runs: Sequence[tuple[str, Results]], paper: dict, table: str) -> tuple[str, str]:
    """The table and what its numbers are, as Markdown and as CSV.

    Args:
        runs: (name, content of results.json) of each run.
        paper: content of paper_results.json.
        table: "all", or "table1", "table2", "figure4": only the runs that belong to a row of it.
    Raises:
        ValueError: if no finished run belongs to the table.
    """
    groups, left = grouped((name, results) for name, results in runs if finished(results))
    left += [
        f"{name}: unfinished, {len(results['phases'])} of {results['config']['nb_phases'] + 1} phases"
        for name, results in runs
        if not finished(results)
    ]
    shown = [group for group in groups if table == "all" or place(group[0]["config"], table)]
    if others := sum(map(len, groups)) - sum(map(len, shown)):
        left.append(f"{others} finished runs that belong to no row of {table} (--table all shows them)")
    if not shown:
        raise ValueError(f"no finished run for --table {table}: {'; '.join(left) or 'no run at all'}")
    shown.sort(key=lambda group: position(group, paper, table))
    curves = table == "figure4"
    blocks = [curve_rows(group, paper) if curves else [summary_row(group, paper, table)] for group in shown]
    rows = [row for block in blocks for row in block]
    notes = [text for text in dict.fromkeys(row["differences_from_paper"] for row in rows) if text]
    lines = curve_tables(blocks, notes) if curves else summary_table(rows, notes)
    lines += ["", *(f"* [{i}] {text}" for i, text in enumerate(notes, 1))] if notes else []
    lines += ["", *(f"* {line}" for line in [*explanations(table, paper), *provenance(shown)])]
    lines += ["", "Left out:", "", *(f"* {line}" for line in left)] if left else []
    return "\n".join(lines) + "\n", to_csv(rows)


def label_cells(row: Row, notes: Sequence[str]) -> list[str]:
    """The cells of COLUMNS."""
    how = {"": "", "yes": ", adjusted", "no": ", not adjusted"}[row["adjusted"]]
    each, total, text = row["exemplars_per_class"], row["exemplars_in_total"], row["differences_from_paper"]
    return [
        row["dataset"],
        str(row["nb_phases"]),
        row["baseline"],
        row["exemplars"] + how,
        f"{total} in total" if total is not None else "-" if each is None else f"{each} per class",
        row["weight_transfer"],
        str(row["finetune_epochs"]),
        row["classifier"],
        str(row["order_seed"]),
        str(row["n"]),
        f"see [{notes.index(text) + 1}]" if text else "paper's",
    ]


def number_cells(row: Row, name: str) -> list[str]:
    """Mean +- confidence interval; where the paper may have a number, that and the difference too."""
    cells = [f"{row[name]:.2f} +- {percent(row[f'{name}_ci95'])}"]
    if f"{name}_paper" in row:
        difference = row[f"{name}_difference"]
        cells += [percent(row[f"{name}_paper"])]
        cells += ["-" if difference is None else f"{round(difference, 2) + 0.0:+.2f}"]  # + 0.0: no "-0.00"
    return cells


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its header, padded so that it reads well as text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return [f"| {line} |" for line in lines]


def summary_table(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    header = ["average accuracy %", "paper", "difference", "forgetting", "paper", "difference", "last accuracy %"]
    metrics = ("average_accuracy", "forgetting", "last_accuracy")
    body = [[*label_cells(row, notes), *(c for name in metrics for c in number_cells(row, name))] for row in rows]
    return markdown([[*COLUMNS, *header], *body])


def curve_tables(blocks: Sequence[Sequence[Row]], notes: Sequence[str]) -> list[str]:
    """A table for each set of runs under a line that says which they are."""
    lines: list[str] = []
    for block in blocks:
        label = zip(COLUMNS, label_cells(block[0], notes), strict=True)
        title = "; ".join(f"{name}: {cell}" for name, cell in label)
        header = ["phase", "classes seen", "accuracy %", "paper", "difference"]
        body = [[str(row["phase"]), str(row["classes_seen"]), *number_cells(row, "accuracy")] for row in block]
        lines += [*([""] if lines else []), f"**{title}**", "", *markdown([header, *body])]
    return lines


def explanations(table: str, paper: dict) -> list[str]:
    """What the numbers are."""
    which = {"all": "table 1 or, for rows that only it has, table 2", "table1": "table 1", "table2": "table 2"}
    curve = (
        "accuracy = on the test images of all classes seen so far; the paper's curves are read off its figure 4, where "
        "that of lucir+mnemonics on cifar100 averages at N = 10 and 25 to its number without adjusting (table 2)"
    )
    averages = [
        AVERAGE.format(phases="all N + 1"),
        f"{FORGETTING}. The paper's formula has the opposite sign, its printed values are positive: the same quantity",
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
    facts = [results.get("environment") or {} for group in groups for results in group]
    machines = [
        f"{f.get('device', 'unknown')} ({f.get('device_name', 'unknown')}), {f.get('cpu_count', '?')} CPUs, "
        f"{f.get('threads', '?')} threads, torch {f.get('torch', '?')}"
        for f in facts
    ]
    commits = [str(f.get("commit", "unknown")) for f in facts]
    return [
        f"{name}: {'; '.join(f'{text} (n = {values.count(text)})' for text in dict.fromkeys(values))}"
        for name, values in (("machine", machines), ("commit", commits))
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """A line per row; cells without a value are empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
