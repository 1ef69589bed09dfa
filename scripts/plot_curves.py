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
from typing import Any

from matplotlib.figure import Figure

from mnemonics.config.fields import BOUNDS
from mnemonics.reporting.figures import DPI, INK, METRICS, Curve, draw_curves, legend_below, save_figure, style_of
from mnemonics.reporting.page_figures import paper_curves
from mnemonics.reporting.paper import images_per_class, load_paper, settings
from mnemonics.reporting.read import load_results, reading, results_files
from mnemonics.reporting.tables import finished, grouped, interval
from mnemonics.reporting.text import Results

Group = list[Results]  # runs that differ in their seed only
IN_NAME = ("baseline", "exemplars")  # settings that a curve is called by, whether or not they differ


def panels_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """title -> the groups with the same classes in the same phases."""
    panels: dict[str, list[Group]] = {}
    for group in groups:
        config, first = group[0]["config"], group[0]["phases"][0]["classes_seen"]
        last = group[0]["phases"][-1]["classes_seen"]
        title = f"{config['dataset']}: {first} classes, then {last - first} in {config['nb_phases']} phases"
        panels.setdefault(f"{title}, order seed {config['order_seed']}", []).append(group)
    return panels


def names_of(groups: Sequence[Group]) -> list[str]:
    """What each group of a panel is called: baseline, exemplars, and every other setting in which groups differ."""
    used = [settings(group[0]["config"]) | {"images per class": images_per_class(group[0])} for group in groups]
    varying = [
        key
        for key in dict.fromkeys(key for values in used for key in values)
        if key not in IN_NAME and len({str(values[key]) for values in used if key in values}) > 1
    ]
    names = []
    for values in used:
        bound = {"joint": "joint (upper bound)", "finetune": "finetune (lower bound)"}.get(values["baseline"])
        shown = [bound or f"{values['baseline']}, {values['exemplars']} exemplars"]
        names.append("; ".join([*shown, *(f"{key} {values[key]}" for key in varying if key in values)]))
    return names


def curve_of(group: Group, name: str, number: int) -> Curve:
    """Mean accuracy of the headline classifier after each phase, and half the width of its confidence interval."""
    headline, n = group[0]["headline"], len(group)
    phases = range(len(group[0]["phases"]))
    points = [interval([results["phases"][i]["accuracy"][headline] for results in group]) for i in phases]
    average, half = interval([results["summary"]["average_accuracy"][headline] for results in group])
    label = f"{name}: {headline.upper()}, average {average:.2f}{'' if half is None else f' ± {half:.2f}'}% (n = {n})"
    upper = group[0]["config"]["baseline"] == BOUNDS[1]
    return Curve(
        label,
        [phase["classes_seen"] for phase in group[0]["phases"]],
        [mean for mean, _ in points],
        None if n == 1 else [half for _, half in points],
        dashed=upper,
        **({"colour": INK} if upper else style_of(number)),
    )


def draw(panels: dict[str, list[Group]], paper: dict[str, Any] | None) -> Figure:
    """A panel beside the other, each with its legend below it."""
    curves = {}
    for title, groups in panels.items():
        ours = [curve_of(group, name, i) for i, (group, name) in enumerate(zip(groups, names_of(groups), strict=True))]
        curves[title] = [*ours, *(paper_curves([group[0] for group in groups], paper) if paper else [])]
    longest = max(map(len, curves.values()))
    figure = Figure(figsize=(7.5 * len(panels), 4.6 + 0.2 * longest), dpi=DPI, layout="constrained")
    for part, title in zip(figure.subfigures(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes = part.add_subplot()
        draw_curves(axes, curves[title], METRICS["accuracy"][2])
        axes.set_title(title, fontsize=10, parse_math=False)
        legend_below(part, axes, [curve.label for curve in curves[title]])
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files. Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="plot_curves.py", description="Accuracy after each phase, over seeds.", allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, results file, or a folder that holds several"
    )
    parser.add_argument("--paper", action="store_true", help="also the paper's curves, in grey, where it has any")
    parser.add_argument("--out", default="curves", metavar="PREFIX", help="write PREFIX.png and PREFIX.pdf (curves)")
    options = parser.parse_args(arguments)
    try:
        paths = {path.resolve(): path for run in options.runs for path in results_files(run)}  # each file once
        runs = [(str(path), load_results(path)) for path in paths.values()]
        for name, results in runs:
            with reading(Path(name)):
                settings(results["config"]), images_per_class(results)
        groups, left = grouped((name, results) for name, results in runs if finished(results))
        left += [f"{name}: unfinished" for name, results in runs if not finished(results)]
        if not groups:
            raise ValueError(f"no finished run: {'; '.join(left)}")
        figure = draw(panels_of(groups), load_paper() if options.paper else None)
        for ending in ("png", "pdf"):
            save_figure(figure, f"{options.out}.{ending}")
    except ValueError as error:
        print(f"plot_curves.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"plot_curves.py: --out {options.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    for line in left:
        print(f"left out: {line}")
    print(f"{options.out}.png, {options.out}.pdf: shaded: 95% confidence interval of the mean (Student's t)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
