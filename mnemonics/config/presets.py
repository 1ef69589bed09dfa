"""What the settings that were not given become: by data set, by --method and by --mnemonics_preset; and the name of a
run."""

import dataclasses
from pathlib import Path

from mnemonics.config.fields import BOUNDS, FIELDS, IMAGENET, LARGEST_SMALL_IMAGE, ExperimentConfig, result_settings
from mnemonics.protocol import phase_sizes

METHODS = {
    "mnemonics": {"exemplars": "mnemonics", "weight_transfer": True},
    "baseline": {"exemplars": "herding", "weight_transfer": False, "finetune_epochs": 0},
}
SMALL_IMAGES = {"network": "resnet32", "epochs": 160, "lr_drops": "1/2,3/4", "lamda": 5.0}
LARGE_IMAGES = {"network": "resnet18", "epochs": 90, "lr_drops": "1/3,2/3", "lamda": 10.0}
IMAGENET_SIZE = 224  # pixels
EXEMPLAR_PRESETS = {
    "default": {
        "mnemonics_base": "joint",
        "mnemonics_start": "herding",
        "mnemonics_steps": 15,
        "mnemonics_lr": 0.01,
        "mnemonics_batch_size": 128,
        "mnemonics_val_batch_size": 512,
        "mnemonics_disturb": 0.2,
        "mnemonics_augment": True,
        "mnemonics_epochs": 20,
        "mnemonics_outer_lr": 0.01,
        "mnemonics_optimizer": "adam",
        "no_adjust": True,
        "finetune_epochs": 15,
    },
    "paper": {
        "mnemonics_base": "new",
        "mnemonics_start": "random",
        "mnemonics_steps": 50,
        "mnemonics_lr": 0.01,
        "mnemonics_batch_size": 128,
        "mnemonics_val_batch_size": 128,
        "mnemonics_disturb": 0.0,
        "mnemonics_augment": False,
        "mnemonics_epochs": 50,
        "mnemonics_outer_lr": 0.01,
        "mnemonics_optimizer": "sgd",
        "no_adjust": False,
        "finetune_epochs": 50,
    },
}


def resolved(config: ExperimentConfig) -> ExperimentConfig:
    """Fill in what depends on other settings: by the size of the images, from --method (a bound has neither weight
    transfer nor fine-tuning), from --mnemonics_preset, then the rest."""
    if config.image_size is None and config.dataset in IMAGENET:
        config = dataclasses.replace(config, image_size=IMAGENET_SIZE)
    if config.network == "auto":
        config = dataclasses.replace(config, network=None)
    by_size = LARGE_IMAGES if (config.image_size or 0) > LARGEST_SMALL_IMAGE else SMALL_IMAGES
    bound = {"weight_transfer": False, "finetune_epochs": 0} if config.baseline in BOUNDS else {}
    always = {"no_adjust": False} if config.adjust_always else {}
    for preset in (by_size, bound, always, METHODS[config.method], EXEMPLAR_PRESETS[config.mnemonics_preset]):
        missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
        config = dataclasses.replace(config, **missing)
    rest = {"finetune_lr": config.mnemonics_lr} if config.finetune_lr is None else {}
    if config.nb_protos is None and config.total_memory is None:
        rest["nb_protos"] = 20
    return dataclasses.replace(config, **rest)


def settled(
    user: ExperimentConfig, num_classes: int, image_size: int | None
) -> tuple[ExperimentConfig, ExperimentConfig]:
    """All settings, once the data set is known.

    Args:
        image_size: height and width in pixels of images in files; None for those in memory, which have their own.
    Returns:
        What `run_name` takes, and what config.json holds.
    Raises:
        UsageError: for phases that do not fit the number of classes.
    """
    first, per_phase, count = phase_sizes(num_classes, user.nb_phases, user.nb_cl_fg, user.nb_cl)
    other_first = None if first == num_classes // 2 else first
    named = dataclasses.replace(user, nb_phases=count, nb_cl=None, nb_cl_fg=other_first)
    config = resolved(dataclasses.replace(named, image_size=image_size))
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
        if name not in main and value != FIELDS[name].default:
            parts.append(name if value is True else f"no_{name}" if value is False else f"{name}{value}")
    return "_".join(parts).replace("/", "-")  # of --lr_drops 1/2,3/4: else it would be several folders
