"""The data sets by their names."""

from collections.abc import Callable
from dataclasses import replace

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.cifar import CIFAR, load_cifar
from mnemonics.data.digits import load_digits
from mnemonics.data.folders import IMAGENET_FOLDERS, load_folders
from mnemonics.data.image_source import ImageSource
from mnemonics.engine.errors import UsageError, printable

SOURCES: dict[str, Callable[[ExperimentConfig], ImageSource]] = {
    "digits": load_digits,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "imagenet_sub": load_folders,
    "imagenet": load_folders,
    "folder": load_folders,
}
NUM_CLASSES = {"digits": 10} | {name: kind.num_classes for name, kind in CIFAR.items()}  # known before any file is read
NUM_CLASSES |= {name: classes for name, (_, classes) in IMAGENET_FOLDERS.items()}


def load_source(config: ExperimentConfig) -> ImageSource:
    """Load the data set `config.dataset`, from `config.data_dir` where it needs files.

    `config.max_images_per_class` (None: all) keeps the first that many training and test images of each class.

    Raises:
        UsageError: where the data set is unknown, or its files are missing, damaged or of another data set.
    """
    if config.dataset not in SOURCES:
        raise UsageError(f"--dataset {config.dataset}: unknown data set; {', '.join(SOURCES)} would work")
    if config.val_share is not None and config.dataset != "folder":
        raise UsageError(f"--val_share {config.val_share}: {config.dataset} has a test set; leave it out")
    source = SOURCES[config.dataset](config)
    names, notices = (tuple(map(printable, texts)) for texts in (source.class_names, source.notices))
    source = replace(source, class_names=names, notices=notices)
    return source if config.max_images_per_class is None else source.limited(config.max_images_per_class)
