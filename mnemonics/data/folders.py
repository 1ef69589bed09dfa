"""Data sets that are folders of image files: train/<class>/* and val/<class>/* (or test/<class>/*), or <class>/*."""

import errno
import hashlib
import os
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.files import FileImages, short_side, workers_of
from mnemonics.data.image_source import ImageSource, rank_within_class
from mnemonics.data.images import DataError, check_strip, headers, usage_errors
from mnemonics.engine.errors import UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
LARGEST_SIZE = 224  # pixels, unless --image_size says more
TINY, WIDE = 8, 4  # told of as odd: a size of fewer pixels; a largest short side so many times the smallest
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
    ignored: Counter[str]  # files that are no images by their names, or in no class folder: how many of each ending


def load_folders(config: ExperimentConfig) -> ImageSource:
    """ImageNet, 100 classes of it, or any other folder of image files, in `config.data_dir`. Where `config.image_size`
    is None, the median of their short sides, at most 224 pixels, becomes the size.

    Headers are read of up to 10,000 files of each split, evenly spaced. So in a larger data set a file that cannot be
    used may be told of only when its class arrives.

    Raises:
        UsageError: for folders that are missing or cannot be read, classes that differ between training and test,
            classes without images, and files that are no images or have too many pixels.
    """
    from torchvision.transforms import v2  # noqa: F401  before there are workers, each of which would import it

    root = Path(os.path.expanduser(config.data_dir))
    below, classes = IMAGENET_FOLDERS.get(config.dataset, ((), None))
    with usage_errors(f"--data_dir {config.data_dir}"):
        places = root, *(root / name for name in below)
        root = next((folder for folder in places if (folder / "train").is_dir()), root)
        train, test = list_splits(root) if config.val_share is None else divided(root, config.val_share)
        notices = notices_of(root, train, test)
        if config.val_share is not None:
            listed_in = "chosen by their names; test_files.txt in the run folder lists them"
            notices.append(f"--val_share {config.val_share}: {len(test.names)} images are for test, {listed_in}")
        if classes not in (None, len(train.class_names)):
            raise UsageError(
                f"--dataset {config.dataset}: {root} holds {len(train.class_names)} classes, not {classes}; "
                "--dataset folder takes any number"
            )
        size, told = looked_at(root, (train, test), config.image_size or (LARGEST_SIZE if classes else None))
    none = torch.empty(0, 3, size, size, dtype=torch.uint8)
    stored = none, size, workers_of(config)
    images = [FileImages(root, split.names, torch.arange(len(split.names)), *stored) for split in (train, test)]
    mean, std, padding, mirror = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size // 8, True
    about = config.dataset, tuple(train.class_names), mean, std, padding, mirror, (*notices, *told)
    return ImageSource(*about, images[0], train.class_ids, images[1], test.class_ids)


def looked_at(root: Path, splits: tuple[Split, Split], size: int | None) -> tuple[int, list[str]]:
    """(height and width in pixels that images are shown at; what to tell of them), from the headers of files. Where
    `size` is None, it is the median of the short sides of training images, at most 224. Raises DataError."""
    train, test = (headers(root, split.names) for split in splits)
    notices = []
    if size is None:
        sides = [min(header.size) for header in train]
        least, median, most = min(sides), statistics.median_low(sides), max(sides)
        size = min(median, LARGEST_SIZE)
        odd = ", which is tiny" if size < TINY else "; they differ widely" if most >= WIDE * least else ""
        found = f"the short sides of {len(sides)} training images are {least} to {most}, their median {median}{odd}"
        notices.append(f"images are shown at {size}x{size} pixels (--image_size): {found}")
    for header in (*train, *test):
        check_strip(header.size, short_side(size), header.path)
    if turned := sum(header.turned for header in (*train, *test)):
        notices.append(f"{turned} of {len(train) + len(test)} images are turned, as their EXIF orientation says")
    return size, notices


def list_splits(root: Path, tests: Sequence[str] = ("val", "test"), key: Callable | None = None) -> tuple[Split, Split]:
    """The files for training, and for test in the first folder of `tests` that is there. The files of a class are
    sorted by the `key` of (path, inode). Raises DataError and OSError."""
    test_folder = next((name for name in tests if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        needed = f"train/<class>/* and {' or '.join(f'{name}/<class>/*' for name in tests)}"
        flat = "of a folder with <class>/* alone, --dataset folder --val_share 0.2 takes a fifth of each class for test"
        raise DataError(f"{root} has no {needed}; {flat}")
    train, test = list_split(root, "train", key), list_split(root, test_folder, key)
    for having, lacking in ((train, test), (test, train)):
        if only := sorted(set(having.class_names) - set(lacking.class_names)):
            here, there = ("train", test_folder) if having is train else (test_folder, "train")
            lacks = f"{root / there} lacks {len(only)} of the classes in {root / here}, for example {only[0]}"
            raise DataError(f"{lacks}; add images to {there}/{only[0]}, or remove {here}/{only[0]}")
    return train, test


def divided(root: Path, share: float) -> tuple[Split, Split]:
    """(training, test) out of root/<class>/*: of each class about `share` of the images for test, one at least, and one
    for training. Those for test have the smallest SHA-256 of their paths below the root: so the split is the same on
    each machine, and a new image moves one other at most. Raises DataError and OSError."""
    if (root / "train").is_dir() and ((root / "val").is_dir() or (root / "test").is_dir()):
        raise DataError(f"{root} has train/ and val/ or test/; leave --val_share {share} out")
    split = list_split(root, "", None)
    counts = torch.bincount(split.class_ids)
    if counts.min() < 2:
        one = root / split.class_names[counts.argmin()]
        raise DataError(f"{one} holds one image; --val_share {share} needs two, or remove the class")
    names = [unicodedata.normalize("NFC", os.fsdecode(name)) for name in split.names]
    hashes = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    order = torch.tensor(sorted(range(len(names)), key=hashes.__getitem__))
    class_ids, wanted = split.class_ids[order], (share * counts).round().clamp(min=1).minimum(counts - 1)
    in_test = torch.empty(len(names), dtype=torch.bool)
    in_test[order] = rank_within_class(class_ids) < wanted[class_ids]
    parts = ((~in_test.numpy(), split.ignored), (in_test.numpy(), Counter()))
    return tuple(Split(split.class_names, *(part[rows] for part in split[1:4]), ignored) for rows, ignored in parts)


def list_split(root: Path, split: str, key: Callable | None) -> Split:
    """All image files of all classes. Class names are in Unicode's normal form NFC, whichever of its forms the folders
    have: macOS often writes another one. Raises DataError if a class has no images, or two have one name, and OSError.
    """
    entries, folders = visible(root / split), {}
    for entry in entries:
        entry.stat()  # raises OSError for a link to nowhere: it may have been a class
        name = unicodedata.normalize("NFC", entry.name)
        if entry.is_dir() and folders.setdefault(name, entry.name) != entry.name:
            alike = f"{folders[name]!a} and {entry.name!a}"
            raise DataError(f"{root / split} has two folders of one name in Unicode, {alike}; rename or join them")
    if not folders:
        raise DataError(f"{root / split} has no folders, one for each class")
    ignored = Counter(ending(entry.name) for entry in entries if not entry.is_dir())
    names, inodes, class_ids = [], [], []
    for class_id, name in enumerate(sorted(folders)):
        images, others = walk(root / split / folders[name])
        if not images:
            needed = f"convert its files ({listed(others)}) to JPEG or PNG" if others else "fill it"
            raise DataError(f"{root / split / name} holds no images that are read here; {needed}, or remove the class")
        for path, inode in sorted(images, key=key):
            names.append(os.fsencode(os.path.relpath(path, root)))
            inodes.append(inode)
        class_ids += [class_id] * len(images)
        ignored += others
    return Split(sorted(folders), np.array(names), torch.tensor(class_ids), np.array(inodes, np.uint64), ignored)


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without ending"


def listed(endings: Counter[str]) -> str:
    """The most frequent ones: "12 .heic, 1 .txt"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(endings.items(), key=lambda e: (-e[1], e[0]))[:3])


def visible(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, without hidden entries. Raises OSError."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def walk(folder: Path) -> tuple[list[tuple[str, int]], Counter[str]]:
    """All images in `folder` and its subfolders, as (path, inode), and the endings of other files. Links are followed.
    Asks the system about no single file but links: on a network that would take minutes for a million of them. Raises
    DataError for a link to a folder that it is in, and OSError."""
    images, ignored = [], Counter()
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
                ignored[ending(entry.name)] += 1
    return images, ignored


def inode_of(entry: os.DirEntry) -> int:
    """The number of the file, or of the one that a link leads to. Raises OSError for a link to nowhere, and for what
    would never end when it is read."""
    if not entry.is_file():
        entry.stat()
        raise OSError(errno.EINVAL, "it is no file", entry.path)
    return entry.stat().st_ino if entry.is_symlink() else entry.inode()


def notices_of(root: Path, train: Split, test: Split) -> list[str]:
    """What is odd about the files, but no mistake for certain: files that are no images, a test set that is not used,
    and files that are in training and in test, as hard or symbolic links. Contents are not compared. Raises OSError."""
    ignored, notices = train.ignored + test.ignored, []
    if ignored:
        few = f"{ignored.total()} files in {root} are no images by their names, or in no class: ignored"
        notices.append(f"{few} ({listed(ignored)})")
    if test.names[0].startswith(b"val/") and (root / "test").is_dir():
        notices.append(f"{root / 'val'} is the test set; {root / 'test'} is not used")
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
