"""What the settings that were not given become, and the name of a run."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnemonics.config.fields import LARGEST_SMALL_IMAGE, SETTINGS, ExperimentConfig, result_settings
from mnemonics.engine.errors import UsageError
from mnemonics.protocol import hash_of_order, phase_sizes

BUDGETS = {"nb_protos": "per class", "total_memory": "in total"}  # setting -> what it counts; a run has one of them
BUDGETS |= {"exemplar_bytes": "bytes per class", "total_bytes": "bytes in total"}
OLDER = {"last_batch": "keep", "exemplar_format": "raw", "recode": 0.0}  # of runs that were made without the setting
OLDER |= {"mnemonics_epoch_unit": "update", "imprint": False, "mnemonics_fall_back": False, "mnemonics_tf32": False}
OLDER |= {"scale_distillation": False}
LONGEST_NAME = 200  # bytes, of a run folder; file systems allow 255, and endings are added


def resolved(config: ExperimentConfig, is_bound: bool) -> ExperimentConfig:
    """Fill in what depends on other settings: see `Setting.defaults`.

    Args:
        is_bound: whether the baseline is one of the bounds, to which nothing of the method applies.
    """
    values = vars(config) | ({"network": None} if config.network == "auto" else {})

    def fill(condition: str) -> None:
        for name, known in SETTINGS.items():
            if values[name] is None and condition in known.defaults:
                values[name] = known.defaults[condition]

    fill(config.dataset)
    fill("large" if (values["image_size"] or 0) > LARGEST_SMALL_IMAGE else "small")  # images
    if values["nb_protos"] == 0:
        fill("no memory")
    if is_bound:
        fill("bound")
    if config.adjust_always:
        fill("always adjusted")
    fill(config.method)
    fill(config.mnemonics_preset)
    if values["finetune_lr"] is None:
        values["finetune_lr"] = values["mnemonics_lr"]  # the base level rehearses the fine-tuning
    fill("lossy" if ":" in values["exemplar_format"] else "lossless")
    if all(values[name] is None for name in BUDGETS):
        values["nb_protos"] = 20
    return ExperimentConfig(**values)


def budget(config: Mapping[str, Any]) -> tuple[str, str]:
    """The exemplar budget in words, and the name of its setting. Images and bytes, per class and in total are different
    experiments, so every table says which."""
    name = next((name for name in BUDGETS if config.get(name) is not None), "nb_protos")
    stored = config.get("exemplar_format") or "raw"
    return f"{config[name]} {BUDGETS[name]}" + (f" as {stored}" if stored != "raw" else ""), name


def settled(
    user: ExperimentConfig, num_classes: int, image_size: int | None, is_bound: bool
) -> tuple[ExperimentConfig, ExperimentConfig]:
    """All settings, once the data set is known.

    Args:
        image_size: height and width in pixels of images in files; None for those in memory, which have their own.
    Returns:
        What `run_name` takes, and what config.json holds.
    Raises:
        UsageError: for phases that do not fit the number of classes, for a bound that is to be fine-tuned, and for a
            file with a class order that cannot be read.
    """
    if is_bound and user.finetune_epochs:
        raise UsageError(f"--finetune_epochs {user.finetune_epochs} and --baseline {user.baseline}: not for a bound")
    first, *later = phase_sizes(num_classes, user.nb_phases, user.nb_cl_fg, user.nb_cl)
    other_first, equal = None if first == num_classes // 2 else first, len(set(later)) == 1
    unequal = None if equal else ",".join(map(str, later))
    order = user.class_order and hash_of_order(user.class_order)
    named = dataclasses.replace(user, nb_phases=len(later), nb_cl=unequal, nb_cl_fg=other_first, class_order=order)
    config = resolved(dataclasses.replace(named, image_size=image_size), is_bound)
    return named, dataclasses.replace(config, nb_cl_fg=first, nb_cl=unequal or later[0])


def run_name(config: ExperimentConfig, data: str = "") -> str:
    """Name of the run folder, e.g. `cifar100_5phases_lucir_mnemonics_epochs2_1f2e3d4c`: the four main settings, every
    other one that is not at its default, and the fingerprint of the data; which folder, where that is the data set.
    `config` is as the user gave it, with nb_phases filled in. A long name ends in a hash of what was left out."""
    main = ("dataset", "nb_phases", "nb_cl_fg", "baseline", "method")
    folder = [Path(config.data_dir).resolve().name] if config.dataset == "folder" else []
    first = [] if config.nb_cl_fg is None else [f"from{config.nb_cl_fg}"]
    parts = [config.dataset, *folder, f"{config.nb_phases}phases", *first, config.baseline, config.method]
    for name, value in result_settings(config).items():
        if name not in main and value != SETTINGS[name].default:
            parts.append(name if value is True else f"no_{name}" if value is False else f"{name}{value}")
    name = "_".join([*parts, data] if data else parts)
    name = name.replace("/", "-").replace(":", "")  # of --lr_drops and --exemplar_format
    if len(name.encode()) <= LONGEST_NAME:
        return name
    short = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{short}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
