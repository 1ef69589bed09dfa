"""What the settings that were not given become, and the name of a run."""

import dataclasses
from pathlib import Path

from mnemonics.config.fields import LARGEST_SMALL_IMAGE, SETTINGS, ExperimentConfig, result_settings
from mnemonics.engine.errors import UsageError
from mnemonics.protocol import phase_sizes


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
    if is_bound:
        fill("bound")
    if config.adjust_always:
        fill("always adjusted")
    fill(config.method)
    fill(config.mnemonics_preset)
    if values["finetune_lr"] is None:
        values["finetune_lr"] = values["mnemonics_lr"]  # the base level rehearses the fine-tuning
    if values["nb_protos"] is None and values["total_memory"] is None:
        values["nb_protos"] = 20
    return ExperimentConfig(**values)


def settled(
    user: ExperimentConfig, num_classes: int, image_size: int | None, is_bound: bool
) -> tuple[ExperimentConfig, ExperimentConfig]:
    """All settings, once the data set is known.

    Args:
        image_size: height and width in pixels of images in files; None for those in memory, which have their own.
    Returns:
        What `run_name` takes, and what config.json holds.
    Raises:
        UsageError: for phases that do not fit the number of classes, and for a bound that is to be fine-tuned.
    """
    if is_bound and user.finetune_epochs:
        raise UsageError(
            f"--finetune_epochs {user.finetune_epochs} and --baseline {user.baseline}: a bound is not fine-tuned on "
            "exemplars; leave the flag out"
        )
    first, per_phase, count = phase_sizes(num_classes, user.nb_phases, user.nb_cl_fg, user.nb_cl)
    other_first = None if first == num_classes // 2 else first
    named = dataclasses.replace(user, nb_phases=count, nb_cl=None, nb_cl_fg=other_first)
    config = resolved(dataclasses.replace(named, image_size=image_size), is_bound)
    return named, dataclasses.replace(config, nb_cl_fg=first, nb_cl=per_phase)


def run_name(config: ExperimentConfig) -> str:
    """Name of the run folder, e.g. `cifar100_5phases_lucir_mnemonics_epochs2`: the four main settings and every other
    one that is not at its default; which folder, where that is the data set. `config` is as the user gave it, with
    nb_phases filled in."""
    main = ("dataset", "nb_phases", "nb_cl_fg", "nb_cl", "baseline", "method")
    parts = [config.dataset, f"{config.nb_phases}phases", config.baseline, config.method]
    if config.nb_cl_fg is not None:
        parts.insert(2, f"from{config.nb_cl_fg}")
    if config.dataset == "folder":
        parts.insert(1, Path(config.data_dir).resolve().name)
    for name, value in result_settings(config).items():
        if name not in main and value != SETTINGS[name].default:
            parts.append(name if value is True else f"no_{name}" if value is False else f"{name}{value}")
    return "_".join(parts).replace("/", "-")  # of --lr_drops 1/2,3/4: else it would be several folders
