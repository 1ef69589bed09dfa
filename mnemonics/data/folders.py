"""Data sets that are folders of image files: train/<class>/* and val/<class>/* (or test/<class>/*)."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.files import FileImages
from mnemonics.data.image_source import ImageSource
from mnemonics.data.images import DataError, opened, usage_errors
from mnemonics.engine.distributed import local_world
from mnemonics.engine.errors import UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
LARGEST_SIZE = 224  # pixels, unless --image_size says more
IMAGENET_FOLDERS = {  # --dataset -> (where it may be below --data_dir, what process_imagenet/ makes first; classes)
    "imagenet_sub": (("seed_1993_subset_100_imagenet/data",), 100),
    "imagenet": (("imagenet_all/data", "imagenet/data", "imagenet"), 1000),
}


class Split(NamedTuple):
    """The files of train/ or val/, class by class."""

    class_names: list[str]
    names: np.ndarray  # bytes [n], paths below the root
    class_ids: Tensor  # int64 [n]
    inodes: np.ndarray  # uint64 [n]: equal for links to the same file, and for some others
    ignored: int  # files that are no images by their names, or in no class folder


def load_folders(config: ExperimentConfig) -> ImageSource:
    """ImageNet, 100 classes of it, or any other folder of image files, in `config.data_dir`. No file is opened, but the
    first training image where `config.image_size` is None: its short side, at most 224 pixels, becomes the size.

    Raises:
        UsageError: for folders that are missing or cannot be read, classes that differ between training and test, and
            classes without images.
    """
    root = Path(os.path.expanduser(config.data_dir))
    below, classes = IMAGENET_FOLDERS.get(config.dataset, ((), None))
    with usage_errors(f"--data_dir {config.data_dir}"):
        places = root, *(root / name for name in below)
        root = next((folder for folder in places if (folder / "train").is_dir()), root)
        train, test = list_splits(root)
        notices = notices_of(root, train, test)
        if classes not in (None, len(train.class_names)):
            raise UsageError(
                f"--dataset {config.dataset}: {root} holds {len(train.class_names)} classes, not {classes}; "
                "--dataset folder takes any number"
            )
        size = config.image_size or LARGEST_SIZE
        if config.image_size is None and not classes:
            with opened(root / os.fsdecode(train.names[0])) as image:
                size = min(*image.size, LARGEST_SIZE)
    cores = min(max((os.cpu_count() or 1) // local_world(), 1), 16)  # for each process on this machine
    workers = cores if config.num_workers is None else config.num_workers
    none = torch.empty(0, 3, size, size, dtype=torch.uint8)
    images = [FileImages(root, s.names, torch.arange(len(s.names)), none, size, workers) for s in (train, test)]
    return ImageSource(
        config.dataset,
        tuple(train.class_names),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_padding=size // 8,
        mirror=True,
        notices=tuple(notices),
        train_images=images[0],
        train_class_ids=train.class_ids,
        test_images=images[1],
        test_class_ids=test.class_ids,
    )


def list_splits(root: Path, tests: Sequence[str] = ("val", "test"), key: Callable | None = None) -> tuple[Split, Split]:
    """The files for training, and for test in the first folder of `tests` that is there. The files of a class are
    sorted by the `key` of (path, inode). Raises DataError and OSError."""
    test_folder = next((name for name in tests if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        raise DataError(f"{root} has no train/<class>/* and {' or '.join(f'{name}/<class>/*' for name in tests)}")
    train, test = list_split(root, "train", key), list_split(root, test_folder, key)
    differing = sorted(set(train.class_names) ^ set(test.class_names))
    if differing or not train.class_names:
        odd = f"{differing[0]} is in only one of them" if differing else "there are none"
        raise DataError(f"{root / 'train'} and {root / test_folder} need the same folders, one for each class; {odd}")
    return train, test


def list_split(root: Path, split: str, key: Callable | None) -> Split:
    """All image files of all classes. Raises DataError if a class has none, and OSError."""
    entries = visible(root / split)
    for entry in entries:
        entry.stat()  # raises OSError for a link to nowhere: it may have been a class
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    ignored, names, inodes, class_ids = len(entries) - len(classes), [], [], []
    for class_id, name in enumerate(classes):
        images, others = walk(root / split / name)
        if not images:
            raise DataError(f"{root / split / name} holds no images; fill it, or remove the class")
        for path, inode in sorted(images, key=key):
            names.append(os.fsencode(os.path.relpath(path, root)))
            inodes.append(inode)
        class_ids += [class_id] * len(images)
        ignored += others
    return Split(classes, np.array(names), torch.tensor(class_ids), np.array(inodes, np.uint64), ignored)


def visible(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, without hidden entries. Raises OSError."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def walk(folder: Path) -> tuple[list[tuple[str, int]], int]:
    """All images in `folder` and its subfolders, as (path, inode), and the number of other files. Links are followed.
    Asks the system about no single file but links: on a network that would take minutes for a million of them. Raises
    DataError for a link to a folder that it is in, and OSError."""
    images, ignored = [], 0
    waiting: list[tuple[str, tuple]] = [(str(folder), ())]  # a folder, and those that it is in
    while waiting:
        directory, above = waiting.pop()
        this = identity(directory)
        if this in above:
            raise DataError(f"{directory} leads to a folder that it is in; remove this link")
        for entry in visible(directory):
            if entry.is_dir():
                waiting.append((entry.path, (*above, this)))
            elif entry.name.lower().endswith(ENDINGS):
                images.append((entry.path, inode_of(entry)))
            else:
                ignored += 1
    return images, ignored


def inode_of(entry: os.DirEntry) -> int:
    """The number of the file, or of the one that a link leads to. Raises OSError for a link to nowhere, and for what
    would never end when it is read."""
    if not entry.is_file():
        entry.stat()
        raise OSError(errno.EINVAL, "it is no file", entry.path)
    return entry.stat().st_ino if entry.is_symlink() else entry.inode()


def notices_of(root: Path, train: Split, test: Split) -> list[str]:
    """What is odd about the files, but no mistake for certain: files that are no images, and files that are in training
    and in test, as hard or symbolic links. Contents are not compared. Raises OSError."""
    ignored, notices = train.ignored + test.ignored, []
    if ignored:
        notices.append(f"{ignored} files in {root} are no images by their names, or in no class: ignored")
    both = np.intersect1d(train.inodes, test.inodes)
    found: list[dict[tuple[int, int], str]] = []
    for split in (train, test):
        names = list(map(os.fsdecode, split.names[np.isin(split.inodes, both)]))
        found.append({identity(root / name): name for name in names})  # on other or network disks, still different
    shared = sorted(found[0].keys() & found[1].keys())
    if shared:
        example = " and ".join(names[shared[0]] for names in found)
        notices.append(f"{len(shared)} files in {root} are in training and in test, as links: {example} for example")
    return notices


def identity(path: str | Path) -> tuple[int, int]:
    """What tells the file or folder, or the one that a link leads to, from all others. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
