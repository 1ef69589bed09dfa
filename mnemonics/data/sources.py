"""The data sets, handed out class by class: all images in memory as uint8, or in files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.cifar100 import read_cifar100
from mnemonics.data.files import FileImages
from mnemonics.data.folders import read_folders, told
from mnemonics.engine.errors import UsageError

DIGITS_SPLIT_SEED = 0
DIGITS_MEAN, DIGITS_STD = 0.3054, 0.3760  # of all pixels of the training split
IMAGENET_FOLDERS = {  # --dataset -> (where it may be below --data_dir, what process_imagenet/ makes first; classes)
    "imagenet_sub": (("seed_1993_subset_100_imagenet/data",), 100),
    "imagenet": (("imagenet_all/data", "imagenet/data", "imagenet"), 1000),
}
Images = Tensor | FileImages


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors gives no single truth value
class ImageSource:
    """A data set: uint8 images [n, 3, H, W], contiguous, or images in files, with int64 class ids [n], for training and
    for test."""

    name: str
    class_names: tuple[str, ...]  # index = class id
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    crop_padding: int  # training augmentation: random crop after padding by this many pixels
    mirror: bool  # whether a mirrored image keeps its class (training augmentation and NME)
    notices: tuple[str, ...]  # lines to show the user
    train_images: Images = field(repr=False)
    train_class_ids: Tensor = field(repr=False)
    test_images: Images = field(repr=False)
    test_class_ids: Tensor = field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train_images.shape[-1]

    def train(self, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
        """Training images (uint8 [n, 3, H, W], or in files) and class ids (int64 [n]) of these classes, in the order of
        the data."""
        return images_of(self.train_images, self.train_class_ids, class_ids)

    def test(self, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
        """Test images (uint8 [n, 3, H, W], or in files) and class ids (int64 [n]) of these classes, in the order of the
        data."""
        return images_of(self.test_images, self.test_class_ids, class_ids)

    def smallest_class(self) -> tuple[str, int]:
        """Name and number of training images of the class with the fewest (the first of several)."""
        counts = torch.bincount(self.train_class_ids, minlength=self.num_classes).tolist()
        return self.class_names[counts.index(min(counts))], min(counts)


def images_of(images: Images, ids: Tensor, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
    chosen = torch.isin(ids, torch.tensor(list(class_ids), dtype=torch.int64))
    return (images, ids) if chosen.all() else (images[chosen], ids[chosen])  # no copy that is not needed


def load_source(config: ExperimentConfig) -> ImageSource:
    """Load the data set `config.dataset`, from `config.data_dir` where it needs files.

    `config.max_images_per_class` (None: all) keeps the first that many training and test images of each class.

    Raises:
        UsageError: where the data set is unknown, or its files are missing, damaged or of another data set.
    """
    loaders: dict[str, Callable[[ExperimentConfig], ImageSource]] = {
        "digits": load_digits,
        "cifar100": load_cifar100,
        "imagenet_sub": load_folders,
        "imagenet": load_folders,
        "folder": load_folders,
    }
    if config.dataset not in loaders:
        raise UsageError(f"--dataset {config.dataset}: unknown data set; {', '.join(loaders)} would work")
    return loaders[config.dataset](config)


def load_cifar100(config: ExperimentConfig) -> ImageSource:
    """CIFAR-100, 32x32 pixels; where it is looked for: `read_cifar100`."""
    data = read_cifar100(config.data_dir)
    return ImageSource(
        "cifar100",
        data.class_names,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2009, 0.1984, 0.2023),
        crop_padding=4,
        mirror=True,
        notices=data.notices,
        **split_fields(data.train, data.test, config.max_images_per_class),
    )


def load_digits(config: ExperimentConfig) -> ImageSource:
    """scikit-learn's 1,797 handwritten digits: 8x8 pixels shown at 16x16, a fixed stratified 80/20 split."""
    # imported here because scikit-learn takes a second that other data sets need not wait for
    from sklearn.datasets import load_digits as read_digits
    from sklearn.model_selection import train_test_split

    values, class_ids = read_digits(return_X_y=True)  # float64 [1797, 64] with 0..16, int64 [1797]
    pixels = np.rint(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)  # exact: 255 / 16 has few binary digits
    images = torch.from_numpy(pixels.repeat(2, axis=2).repeat(2, axis=3).repeat(3, axis=1))  # [1797, 3, 16, 16]
    ids = torch.from_numpy(class_ids.astype(np.int64))
    splits = train_test_split(np.arange(len(ids)), test_size=0.2, random_state=DIGITS_SPLIT_SEED, stratify=class_ids)
    train, test = (torch.from_numpy(np.sort(indices)) for indices in splits)  # sorted: order as in the data set
    return ImageSource(
        "digits",
        tuple("0123456789"),
        mean=(DIGITS_MEAN,) * 3,
        std=(DIGITS_STD,) * 3,
        crop_padding=2,
        mirror=False,  # a mirrored 3 is no 3
        notices=(),
        **split_fields((images[train], ids[train]), (images[test], ids[test]), config.max_images_per_class),
    )


def load_folders(config: ExperimentConfig) -> ImageSource:
    """ImageNet, 100 classes of it, or any other folder of image files, in `config.data_dir`."""
    root = Path(os.path.expanduser(config.data_dir))
    flag = f"--data_dir {config.data_dir}"
    below, classes = IMAGENET_FOLDERS.get(config.dataset, ((), None))
    with told(flag):
        places = root, *(root / name for name in below)
        root = next((folder for folder in places if (folder / "train").is_dir()), root)
    data = read_folders(root, flag, config.image_size or (None if classes is None else 224), config.num_workers)
    if classes not in (None, len(data.class_names)):
        raise UsageError(
            f"--dataset {config.dataset}: {root} holds {len(data.class_names)} classes, not {classes}; "
            "--dataset folder takes any number"
        )
    return ImageSource(
        config.dataset,
        data.class_names,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_padding=data.train[0].size // 8,
        mirror=True,
        notices=data.notices,
        **split_fields(data.train, data.test, config.max_images_per_class),
    )


def split_fields(train: tuple[Images, Tensor], test: tuple[Images, Tensor], limit: int | None) -> dict[str, Images]:
    """The four tensor fields of ImageSource, cut to the first `limit` images of each class."""
    train, test = first_per_class(*train, limit), first_per_class(*test, limit)
    return {"train_images": train[0], "train_class_ids": train[1], "test_images": test[0], "test_class_ids": test[1]}


def first_per_class(images: Images, class_ids: Tensor, limit: int | None) -> tuple[Images, Tensor]:
    if limit is None:
        return images, class_ids
    first = [(class_ids == k).nonzero()[:limit, 0] for k in class_ids.unique()]
    chosen = torch.cat(first).sort().values
    return images[chosen], class_ids[chosen]


SOURCES: dict[str, Callable[[ExperimentConfig], ImageSource]] = {
    "cifar100": load_cifar100,
    "digits": load_digits,
    "imagenet_sub": load_folders,
    "imagenet": load_folders,
    "folder": load_folders,
}
