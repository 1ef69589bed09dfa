"""What in the paper stands beside a run, and in which settings the run differs from the paper's.

Functions of the "config" of results.json and of the paper's numbers in paper_results.json.
"""

import functools
import json
from pathlib import Path
from typing import Any

from mnemonics.baselines import BASELINES
from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.config.presets import BUDGETS, OLDER, resolved
from mnemonics.exemplars.methods import EXEMPLARS
from mnemonics.reporting import text
from mnemonics.reporting.text import Results

TABLES = {  # --table -> key of paper_results.json
    "table1": "table1",
    "table2": "table2_lucir_with_weight_transfer",
    "figure4": "figure4_accuracy_per_phase",
}
DATASETS = {"cifar100": "cifar100", "imagenet_sub": "imagenet_subset", "imagenet": "imagenet"}  # ours -> the paper's
TRAIN_IMAGES = {"cifar100": 500}  # per class; a smaller copy of the data is not the paper's data
NOT_GIVEN = {"nb_cl_fg": "half of all", "max_images_per_class": "all"}
ORDER = [  # of the rows in the tables of the paper
    *(("table1", f"{name}{ours}") for name in ("lwf", "icarl", "bic", "lucir") for ours in ("", "+mnemonics")),
    *(("table2", f"{name}{how}") for name in ("random", "herding", "mnemonics") for how in (" w/o adjusting", "")),
    *(("figure4", name) for name in ("joint", "lwf", "icarl", "bic", "lucir", "lucir+mnemonics")),
]


@functools.cache
def load_paper() -> dict[str, Any]:
    """The paper's numbers."""
    return json.loads(Path(__file__).with_name("paper_results.json").read_text(encoding="utf-8"))


# which settings count, and the paper's


def is_bound(config: dict[str, Any]) -> bool:
    """Whether the baseline is a bound, without exemplars."""
    return BASELINES[config["baseline"]].is_bound()


def optimises(config: dict[str, Any]) -> bool:
    """Whether the pixels of new exemplars are optimised (Eq. 9)."""
    return not is_bound(config) and EXEMPLARS[config["exemplars"]].optimise is not None


def adjusted(config: dict[str, Any]) -> bool:
    """Whether old exemplars are adjusted (Eq. 10)."""
    always = bool(config.get("adjust_always", False))
    return not is_bound(config) and (always or (optimises(config) and not config["no_adjust"]))


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the numbers of a run depend on, its seed apart; older runs have defaults for newer settings."""
    known = OLDER | {name: value for name, value in config.items() if name in SETTINGS}
    complete = vars(resolved(ExperimentConfig(**known), is_bound(config)))
    parts = {  # that a run has, as `Setting.used_by` names them
        config["baseline"]: True,
        "memory": not is_bound(config),
        "optimises": optimises(config),
        "adjusts": adjusted(config),
        "finetunes": config["finetune_epochs"] > 0,
    }
    values = {
        name: complete[name]
        for name, setting in SETTINGS.items()
        if setting.affects_results and setting.compared
        if not setting.used_by or any(parts.get(part) for part in setting.used_by.split())
    }
    first, later = config.get("nb_cl_fg"), config.get("nb_cl")
    if isinstance(later, str):
        values["nb_cl"] = later
    elif None not in (first, later) and first == (first + config["nb_phases"] * later) // 2:
        values["nb_cl_fg"] = None
    return values | {"weight_transfer": bool(config.get("weight_transfer")), "adjusted": adjusted(config)}


def images_per_class(results: Results) -> float:
    """Training images of a class of phase 0, on average."""
    first = results["phases"][0]
    return first["train_images"]["new"] / first["classes_seen"]


def paper_settings(config: dict[str, Any]) -> dict[str, Any]:
    """All settings of the paper for the same data, phases, baseline, exemplars, weight transfer and adjusting, and with
    fine-tuning where `config` has it."""
    same = ("dataset", "nb_phases", "order_seed", "baseline", "exemplars")
    user = ExperimentConfig(
        **{name: config[name] for name in same},
        weight_transfer=bool(config.get("weight_transfer")),
        finetune_epochs=None if config["finetune_epochs"] else 0,
        mnemonics_preset="paper",
        last_batch="keep",
    )
    return vars(resolved(user, is_bound(config)))


def same_protocol(results: Results) -> bool:
    """Whether classes, their order, phases and exemplar budget are the paper's: only then its numbers stand beside
    those of the run, whatever else differs."""
    mine, theirs = settings(results["config"]), paper_settings(results["config"])
    names = ("nb_cl_fg", "nb_cl", *BUDGETS, "max_images_per_class", "class_order")
    order = results["config"]["order_seed"] == SETTINGS["order_seed"].default
    return order and all(mine[name] == theirs[name] for name in names if name in mine)


def differences(results: Results) -> list[str]:
    """In words, each setting of the run that is not the paper's."""
    config = results["config"]
    mine, theirs, found = settings(config), paper_settings(config), []
    if "nb_protos" in mine and mine["nb_protos"] is None:
        del mine["nb_protos"]
        name = next(name for name in BUDGETS if mine.get(name) is not None)
        found.append(f"--{name} {mine.pop(name)} (paper: --nb_protos {theirs['nb_protos']})")
    for name, value in mine.items():
        if name in theirs and value != theirs[name]:
            found.append(f"--{name} {in_words(name, value)} (paper: {in_words(name, theirs[name])})")
    real, images = TRAIN_IMAGES.get(config["dataset"]), images_per_class(results)
    if real is not None and images != real and config.get("max_images_per_class") is None:
        found.append(f"{images:g} training images per class (paper: {real})")
    return found


def in_words(name: str, value: Any) -> str:
    return NOT_GIVEN.get(name, "not given") if value is None else text.in_words(value)


# which number of the paper belongs to a run


def paper_rows(config: dict[str, Any]) -> dict[str, str]:
    """The row of each table of the paper that such a run belongs to, whatever its data set and phases are."""
    baseline, exemplars, adjusts = config["baseline"], config["exemplars"], adjusted(config)
    transfer, tuned = bool(config.get("weight_transfer")), config["finetune_epochs"] > 0
    if is_bound(config):
        return {"figure4": "joint"} if baseline == "joint" and not transfer else {}
    rows = {}
    if exemplars == "herding" and not (transfer or tuned or adjusts):
        rows["table1"] = baseline
    if exemplars == "mnemonics" and transfer and tuned:
        rows["table1"] = f"{baseline}+mnemonics"
    if baseline == "lucir" and transfer and tuned:
        rows["table2"] = exemplars if adjusts else f"{exemplars} w/o adjusting"
    if ("figure4", rows.get("table1")) in ORDER:
        rows["figure4"] = rows["table1"]
    return rows


def place(config: dict[str, Any], table: str) -> tuple[str, str] | None:
    """(table of the paper, row in it) that stands beside such a run; in "all", table 1 comes before table 2, but for
    runs without adjusting, of which only table 2 has rows."""
    rows, both = paper_rows(config), ("table1", "table2") if adjusted(config) else ("table2", "table1")
    return next(((t, rows[t]) for t in (both if table == "all" else (table,)) if (t, rows.get(t)) in ORDER), None)


def paper_number(config: dict[str, Any], table: str, metric: str = "average_accuracy") -> Any:
    """The paper's number (in figure 4: the list of its numbers), None where it has none."""
    where = place(config, table)
    if where is None:
        return None
    dataset, phases = DATASETS.get(config["dataset"], ""), str(config["nb_phases"])
    numbers = load_paper()[TABLES[where[0]]]
    if table == "figure4":
        return numbers.get(dataset, {}).get(phases, {}).get(where[1])
    return numbers.get(metric, {}).get(where[1], {}).get(dataset, {}).get(phases)
