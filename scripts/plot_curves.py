"""The paper's figure 4 from any runs: accuracy after each phase, mean and 95% confidence interval over seeds.

    python scripts/plot_curves.py runs                                 every run in a folder; curves.png and curves.pdf
    python scripts/plot_curves.py runs/a runs/b --paper --out figure4  with the paper's; figure4.png and figure4.pdf

Runs that differ in their seed only are one curve; runs of another data set, split into phases or class order have a
panel of their own. Exit status: 0 done, 2 a run or the command line must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mnemonics.engine.errors import UsageError, command
from mnemonics.reporting import figures
from mnemonics.reporting.figures import Curve
from mnemonics.reporting.paper import images_per_class, settings
from mnemonics.reporting.read import load_all, writing
from mnemonics.reporting.tables import Group, curve_rows, grouped, interval, plus_minus
from mnemonics.reporting.text import order_of


def panels_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """title -> the groups with the same classes in the same phases."""
    panels: dict[str, list[Group]] = {}
    for group in groups:
        config, phases = group[0]["config"], group[0]["phases"]
        first, later = phases[0]["classes_seen"], phases[-1]["classes_seen"] - phases[0]["classes_seen"]
        unequal = f" ({config['nb_cl']})" if isinstance(config["nb_cl"], str) else ""
        title = f"{data_name(group[0], groups)}: {first} classes, then {later} in {config['nb_phases']} phases{unequal}"
        panels.setdefault(f"{title}, {order_of(config)}", []).append(group)
    return panels


def data_name(results: dict, groups: Sequence[Group]) -> str:
    """What the data set of a run is called; where runs have several of that name, with its fingerprint."""
    name, fingerprint = results["config"]["dataset"], (results.get("data") or {}).get("fingerprint")
    of_name = [group[0].get("data") for group in groups if group[0]["config"]["dataset"] == name]
    several = len({data["fingerprint"] for data in of_name if data}) > 1
    return f"{name} {fingerprint[:8]}" if several and fingerprint else name


def names_of(groups: Sequence[Group]) -> list[str]:
    """What each group of a panel is called: baseline, exemplars, and every other setting in which groups differ."""
    used = [settings(group[0]["config"]) | {"images per class": images_per_class(group[0])} for group in groups]
    keys = dict.fromkeys(key for values in used for key in values if key not in ("baseline", "exemplars"))
    varying = [key for key in keys if len({str(values[key]) for values in used if key in values}) > 1]
    names = []
    for values in used:
        bound = {"joint": "joint (upper bound)", "finetune": "finetune (lower bound)"}.get(values["baseline"])
        shown = [bound or f"{values['baseline']}, {values['exemplars']} exemplars"]
        names.append("; ".join([*shown, *(f"{key} {values[key]}" for key in varying if key in values)]))
    return names


def curve_of(group: Group, name: str) -> Curve:
    """Mean accuracy of the headline classifier after each phase, and half the width of its confidence interval."""
    headline, rows = group[0]["headline"], curve_rows(group)
    average = plus_minus(*interval([results["summary"]["average_accuracy"][headline] for results in group]))
    label = f"{name}: {headline.upper()}, average {average}% (n = {len(group)})"
    seen, means, halves = ([row[key] for row in rows] for key in ("classes_seen", "accuracy", "accuracy_ci95"))
    upper = group[0]["config"]["baseline"] == "joint"
    return Curve(label, seen, means, halves if len(group) > 1 else None, figures.INK if upper else None, dashed=upper)


def plot(panels: dict[str, list[Group]], with_paper: bool) -> Figure:
    """A panel beside the other, each with its legend below it."""
    curves = {title: list(map(curve_of, groups, names_of(groups))) for title, groups in panels.items()}
    for title, groups in panels.items():
        curves[title] += figures.paper_curves([group[0] for group in groups]) if with_paper else []
    size = (7.5 * len(panels), 4.6 + 0.2 * max(map(len, curves.values())))
    figure = Figure(figsize=size, dpi=figures.DPI, layout="constrained")
    for part, title in zip(figure.subfigures(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes = part.add_subplot()
        figures.plot_curves(axes, curves[title])
        axes.set_title(title, fontsize=10, parse_math=False)
        figures.legend_below(part, axes.lines, [curve.label for curve in curves[title]])
    return figure


@command("plot_curves.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Accuracy after each phase, over seeds.", allow_abbrev=False)
    add, every = parser.add_argument, "run folder, results file, or a folder that holds several"
    add("runs", nargs="+", type=Path, metavar="RUN", help=every)
    add("--paper", action="store_true", help="also the paper's curves, in grey, where it has any")
    add("--out", default="curves", metavar="PREFIX", help="write PREFIX.png and PREFIX.pdf (%(default)s)")
    options = parser.parse_args(arguments)
    groups, left = grouped(load_all(options.runs))
    if not groups:
        raise UsageError(f"no finished run: {'; '.join(left)}")
    figure = plot(panels_of(groups), options.paper)
    with writing(options.out):
        for ending in ("png", "pdf"):
            figures.save_figure(figure, f"{options.out}.{ending}")
    for line in left:
        print(f"left out: {line}")
    print(f"{options.out}.png, {options.out}.pdf: shaded: 95% confidence interval of the mean (Student's t)")


if __name__ == "__main__":
    sys.exit(main())
