"""What the settings that were not given become: by data set, by --method and by --mnemonics_preset."""

import dataclasses

from mnemonics.config import BOUNDS, IMAGENET, LARGEST_SMALL_IMAGE, ExperimentConfig

METHODS = {
    "mnemonics": {"exemplars": "mnemonics", "weight_transfer": True},
    "baseline": {"exemplars": "herding", "weight_transfer": False, "finetune_epochs": 0},
}
SMALL_IMAGES = {"network": "resnet32", "epochs": 160, "lr_drops": "1/2,3/4", "lamda": 5.0}
LARGE_IMAGES = {"network": "resnet18", "epochs": 90, "lr_drops": "1/3,2/3", "lamda": 10.0}
IMAGENET_SIZE = 224  # pixels
EXEMPLAR_PRESETS = {
    "default": {
        "mnemonics_base": "new",
        "mnemonics_start": "random",
        "mnemonics_steps": 15,
        "mnemonics_lr": 0.01,
        "mnemonics_batch_size": 128,
        "mnemonics_epochs": 20,
        "mnemonics_outer_lr": 0.01,
        "mnemonics_optimizer": "adam",
        "finetune_epochs": 15,
    },
    "paper": {
        "mnemonics_base": "new",
        "mnemonics_start": "random",
        "mnemonics_steps": 50,
        "mnemonics_lr": 0.01,
        "mnemonics_batch_size": 128,
        "mnemonics_epochs": 50,
        "mnemonics_outer_lr": 0.01,
        "mnemonics_optimizer": "sgd",
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
    for preset in (by_size, bound, METHODS[config.method], EXEMPLAR_PRESETS[config.mnemonics_preset]):
        missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
        config = dataclasses.replace(config, **missing)
    rest = {"finetune_lr": config.mnemonics_lr} if config.finetune_lr is None else {}
    if config.nb_protos is None and config.total_memory is None:
        rest["nb_protos"] = 20
    return dataclasses.replace(config, **rest)
