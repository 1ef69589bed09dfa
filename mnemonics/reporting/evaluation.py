"""What an evaluation leaves behind: evaluation.json, evaluation.md and confusion.png."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from mnemonics.engine.files import atomic_write, write_json
from mnemonics.evaluation import summary
from mnemonics.reporting.figures import DPI, plot_confusion, save_figure
from mnemonics.reporting.read import writing
from mnemonics.reporting.text import AVERAGE, CLASSIFIERS, FORGETTING, percent, render_table, summary_rows


def summary_of(phases: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """As in results.json, over the phases that were evaluated and the classifiers that all of them have. There is no
    forgetting without phase 0."""
    common = [name for name in phases[0]["accuracy"] if all(name in p["accuracy"] for p in phases)]
    keys = ("accuracy", "phase0_accuracy")
    result = summary([{key: {name: p[key][name] for name in common} for key in keys} for p in phases])
    if phases[0]["phase"] > 0:
        result["forgetting"] = dict.fromkeys(common)
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """The tables of an evaluation with what each number is. Accuracies in percent, forgetting in points."""
    phases, missing = result["phases"], result["missing_phases"]
    names = list(dict.fromkeys(name for p in phases for name in p["accuracy"]))
    shown, headline = [name.upper() for name in names], result["headline"].upper()
    rows = [["phase", "classes", *(f"{n} %" for n in shown), *(f"{n} % on phase-0 classes" for n in shown)]]
    for p in phases:
        values = [p[key].get(name) for key in ("accuracy", "phase0_accuracy") for name in names]
        rows.append([str(p["phase"]), str(p["classes_seen"]), *map(percent, values)])
    transfer = "from phase 1 on" if result["weight_transfer"] else "off"
    notes = [CLASSIFIERS[name] for name in names]
    parts = [
        f"# {result['name']}",
        f"{result['dataset']}, {result['network']}, weight transfer {transfer}; headline classifier: {headline}",
        render_table(rows, "markdown"),
    ]
    if len(phases) > 1:
        parts.append(render_table(summary_rows(result), "markdown"))
        count = f"{len(phases)} of all {len(phases) + len(missing)}" if missing else f"all {len(phases)}"
        notes = [AVERAGE.format(phases=count), FORGETTING, *notes]
    notes += ["all on test images, all classes seen so far to choose from; phase-0 classes: only their test images"]
    parts.append("\n".join(f"* {note}" for note in [*notes, *result["notices"]]))
    parts.append(f"![confusion matrix of {headline} after phase {phases[-1]['phase']}](confusion.png)")
    return "\n\n".join(parts) + "\n"


def check_out(folder: Path) -> None:
    """Make the folder of the results: better before the evaluation than after it. Raises UsageError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write(folder: Path, result: dict[str, Any], confusion: Tensor, starts: list[int], names: list[str]) -> str:
    """Write the three files. Returns the Markdown. Raises UsageError where the folder cannot be written."""
    text = to_markdown(result)
    figure = Figure(figsize=(7.6, 6.6), dpi=DPI, layout="constrained")
    image = plot_confusion(figure.add_subplot(), confusion.numpy(), starts, names)
    title = f"{result['name']}: {result['headline'].upper()} after phase {result['phases'][-1]['phase']}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.colorbar(image, label="share of the class's test images (%)")
    with writing(folder):
        save_figure(figure, folder / "confusion.png")
        atomic_write(folder / "evaluation.md", text.encode())
        write_json(folder / "evaluation.json", result)
    return text
