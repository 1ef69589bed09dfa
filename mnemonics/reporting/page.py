"""One page on one run or several (report.html): everything is inside it, it has no script and needs no network.

`page` is a pure function of what runs left behind. Every number comes from results.json; the template escapes all text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from mnemonics.config.fields import SETTINGS
from mnemonics.engine.files import atomic_write
from mnemonics.reporting.figures import METRICS, STAGES
from mnemonics.reporting.page_figures import (
    Run,
    confusion_figure,
    curve_figure,
    exemplar_figures,
    loaded,
    origin_figure,
    time_figure,
)
from mnemonics.reporting.paper import differences, load_paper, paper_number, same_protocol
from mnemonics.reporting.read import reading, run_names
from mnemonics.reporting.text import (
    AVERAGE,
    CLASSIFIERS,
    FORGETTING,
    SUMMARY,
    Results,
    budget,
    classifiers,
    definitions,
    percent,
    phase_rows,
    starred,
    title_of,
)

PICTURES = 4  # of exemplars: so many in a page on one run, fewer per run in one on several
IN_PAPER = ("average_accuracy", "forgetting")  # of SUMMARY
Rows = list[list[str]]  # the cells of a table, the first row its header


def write_report(paths: Sequence[Path], out: Path) -> None:
    """Write the page on these runs (folders, or results files) to `out`: whole, or not at all.

    Raises:
        ValueError: for a run that cannot be used (one line naming the file).
        OSError: if `out` cannot be written.
    """
    pictures = max(1, PICTURES // len(paths))
    runs = [loaded(path, name, pictures) for path, name in zip(paths, run_names(paths), strict=True)]
    atomic_write(out, page(runs, load_paper()).encode())


def page(runs: Sequence[Run], paper: dict[str, Any]) -> str:
    """The HTML; the same runs give the same text.

    Raises:
        ValueError: for results that lack something (one line naming the file).
    """
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = []
    for number, run in enumerate(runs):
        with reading(run.path):
            parts.append(part(run, number, paper, alone=len(runs) == 1))
    several = len(runs) > 1
    return environment.get_template("report.html").render(
        title=f"Comparison of {len(runs)} runs" if several else runs[0].name,
        parts=parts,
        numbers=joined([p["numbers"] for p in parts]),
        curves=[curve_figure(runs, metric, paper) for metric in METRICS],
        deviations=by_text({p["name"]: p["deviations"] for p in parts}),
        after_phases=after_phases(runs) if several else [],
        differing=differing(runs),
        settings=[(name, shown(value)) for name, value in common_settings(runs).items()],
        definitions=explanations(runs),
    )


def part(run: Run, number: int, paper: dict[str, Any], alone: bool) -> dict[str, Any]:
    """What the page shows of one run."""
    results, config = run.results, run.results["config"]
    finished, planned = len(results["phases"]), config["nb_phases"] + 1
    units = dict(zip(SUMMARY, ("%", "%", " points"), strict=True))
    return {
        "name": run.name,
        "title": f"{title_of(results)}; {budget(config).split(' (')[0]}; weight transfer {weight_transfer(config)}",
        "unfinished": f"{finished} of {planned} phases are finished" if finished < planned else "",
        "tiles": [(key.replace("_", " "), percent(results["summary"][key][run.headline]), units[key]) for key in units],
        "headline": run.headline.upper(),
        "numbers": number_rows(run, paper, alone),
        "deviations": differences(results) if same_protocol(results) and in_paper(run, paper) else [],
        "phases": phase_rows(results),
        "origin": origin_figure(run, f"o{number}"),
        "confusion": confusion_figure(run, f"m{number}"),
        "exemplars": exemplar_figures(run),
        "losses": loss_rows(results),
        "time": time_figure(run, f"t{number}"),
        "seconds": time_rows(results),
        "environment": environment_of(results),
    }


# tables


def in_paper(run: Run, paper: dict[str, Any]) -> bool:
    return any(paper_number(paper, run.results["config"], table) is not None for table in ("all", "figure4"))


def weight_transfer(config: dict[str, Any]) -> str:
    return "on" if config.get("weight_transfer") else "off"


def number_rows(run: Run, paper: dict[str, Any], alone: bool) -> Rows:
    """The summary of a run: its headline classifier, or all where the run is alone. The paper's numbers stand beside
    those of the headline classifier where all phases are finished and the protocol is the paper's."""
    config, results = run.results["config"], run.results
    whole = len(results["phases"]) == config["nb_phases"] + 1
    which = {
        "run": run.name,
        "baseline": config["baseline"],
        "exemplars": config["exemplars"],
        "budget": budget(config).split(" (")[0].replace("exemplars ", ""),
        "weight transfer": weight_transfer(config),
    }
    which = {} if alone else which
    titles = [[title, *(["paper"] if key in IN_PAPER else [])] for key, title in SUMMARY.items()]
    rows = [[*which, "classifier", *(title for pair in titles for title in pair)]]
    for name, star in starred(results).items():
        if name != run.headline and not alone:
            continue
        cells = [*which.values(), star]
        for key in SUMMARY:
            cells.append(percent(results["summary"][key][name]))
            if key in IN_PAPER:
                comparable = name == run.headline and whole and same_protocol(results)
                cells.append(percent(paper_number(paper, config, "all", key) if comparable else None))
        rows.append(cells)
    return rows


def joined(tables: Sequence[Rows]) -> Rows:
    """Tables with the same header as one, without the columns of the paper where it has no number."""
    rows = [tables[0][0], *(row for table in tables for row in table[1:])]
    kept = [i for i, name in enumerate(rows[0]) if name != "paper" or any(row[i] != "-" for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def after_phases(runs: Sequence[Run]) -> Rows:
    """Accuracy of the headline classifier of each run (a column) after each phase (a row)."""
    rows = [["phase", *(f"{run.name}: {run.headline.upper()} %" for run in runs)]]
    for i in range(max(len(run.results["phases"]) for run in runs)):
        phases = [run.results["phases"][i : i + 1] for run in runs]
        cells = [percent(p[0]["accuracy"][run.headline]) if p else "" for p, run in zip(phases, runs, strict=True)]
        rows.append([str(i), *cells])
    return rows


def loss_rows(results: Results) -> Rows:
    """Validation loss of the new exemplars of each phase, and how far they moved; nothing if they are real images."""
    rows = [["phase", "loss before", "loss after", "loss as 8-bit pixels", "mean change, grey levels"]]
    for phase in results["phases"]:
        if losses := phase.get("exemplar_validation_loss"):
            values = [f"{losses[key]:.4f}" for key in ("start", "optimised", "rounded")]
            moved = phase.get("exemplar_change_grey_levels")
            rows.append([str(phase["phase"]), *values, percent(moved)])
    return rows if len(rows) > 1 else []


def time_rows(results: Results) -> Rows:
    """Seconds of each stage, peak memory, and what the pixels of the exemplars take, for each phase."""
    rows = [["phase", *(f"{stage}, s" for stage in STAGES), "total, s", "peak, MiB", "stored, KiB"]]
    for phase in results["phases"]:
        seconds = phase["seconds"]
        stages = [percent(seconds.get(stage)) for stage in STAGES]
        sizes = [f"{phase['peak_memory_bytes'] / 2**20:.0f}", f"{phase['exemplar_bytes'] / 2**10:.1f}"]
        rows.append([str(phase["phase"]), *stages, percent(sum(seconds.values())), *sizes])
    found = [[p["seconds"][stage] for p in results["phases"] if stage in p["seconds"]] for stage in STAGES]
    totals = [percent(sum(seconds) if seconds else None) for seconds in found]
    whole = percent(sum(sum(phase["seconds"].values()) for phase in results["phases"]))
    return [*rows, ["all", *totals, whole, "", ""]]


# settings and explanations


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else str(value)


def differs(runs: Sequence[Run], name: str) -> bool:
    return len({shown(run.results["config"].get(name)) for run in runs}) > 1


def setting_names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.results["config"]))


def common_settings(runs: Sequence[Run]) -> dict[str, Any]:
    return {name: runs[0].results["config"].get(name) for name in setting_names(runs) if not differs(runs, name)}


def differing(runs: Sequence[Run]) -> Rows:
    """The settings in which the runs differ; first those that can change a number."""
    names = [name for name in setting_names(runs) if differs(runs, name)]
    names.sort(key=lambda name: name in SETTINGS and not SETTINGS[name].affects_results)
    rows = [[name, *(shown(run.results["config"].get(name)) for run in runs)] for name in names]
    return [["setting", *(run.name for run in runs)], *rows] if rows else []


def by_text(deviations: dict[str, list[str]]) -> dict[str, str]:
    """What is not as in the paper -> the names of the runs of which that is true."""
    names: dict[str, list[str]] = {}
    for name, found in deviations.items():
        if found:
            names.setdefault("; ".join(found), []).append(name)
    return {text: ", ".join(which) for text, which in names.items()}


def environment_of(results: Results) -> list[tuple[str, str]]:
    """Machine, versions and command, and the class order."""
    order = results["class_order"]
    facts = {
        **results["environment"],
        "class order": ", ".join(map(str, order)),
        "its SHA-256": results["class_order_sha256"],
    }
    return [(name.replace("_", " "), str(value)) for name, value in facts.items()]


def explanations(runs: Sequence[Run]) -> list[str]:
    """What the numbers are."""
    measured = dict.fromkeys(name for run in runs for name in classifiers(run.results))
    if len(runs) == 1:
        lines = definitions(runs[0].results)
    else:
        tuning = "of the headline classifier (*) of each run, after any fine-tuning on the exemplars; n = 1 run per row"
        lines = [f"accuracies in percent {tuning}", AVERAGE.format(phases="all finished"), FORGETTING]
    return [*lines, *(CLASSIFIERS[name] for name in measured)]
