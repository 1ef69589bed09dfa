"""Data sets that are folders of image files: train/<class>/* and val/<class>/* (or test/<class>/*)."""

import contextlib
import errno
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemonics.data.files import FileImages
from mnemonics.data.images import ImageError, size_of
from mnemonics.engine.distributed import local_world
from mnemonics.engine.errors import UsageError, printable

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
TEST_FOLDERS = ("val", "test")  # the first one that is there
LARGEST_SIZE = 224  # pixels, unless --image_size says more


class Split(NamedTuple):
    """The files of train/ or val/: paths below the root as bytes [n], class by class, and class ids int64 [n]."""

    names: np.ndarray
    class_ids: Tensor
    inodes: np.ndarray  # uint64 [n]: equal for links to the same file, and for some others
    ignored: int  # files that are no images by their names, or in no class folder
    loops: tuple[str, ...]  # links to a folder that they are in themselves


@dataclass
class Listing:
    """What is below one class folder, as `walk` finds it."""

    images: list[tuple[str, int]] = field(default_factory=list)  # (path, inode)
    ignored: int = 0
    loops: list[str] = field(default_factory=list)


class Folders(NamedTuple):
    """A data set of files. A split is (images, class ids int64 [n])."""

    class_names: tuple[str, ...]
    train: tuple[FileImages, Tensor]
    test: tuple[FileImages, Tensor]
    notices: tuple[str, ...]


def read_folders(root: Path, flag: str, size: int | None, workers: int | None) -> Folders:
    """List the files below `root` without opening any, but the first where `size` is None.

    Args:
        flag: what to name in errors, e.g. "--data_dir data".
        size: height and width in pixels; None: what the first training image has on its short side, at most 224.
        workers: processes that decode; None: one per core, at most 16. Several processes share the cores.
    Raises:
        UsageError: for folders that are missing or cannot be read, classes that differ between training and test, and
            classes without images.
    """
    with told(flag):
        classes, train, test = list_splits(root, flag)
        notices = notices_of(root, train, test)
        size = size or min(*size_of(root / os.fsdecode(train.names[0])), LARGEST_SIZE)
    workers = min(max((os.cpu_count() or 1) // local_world(), 1), 16) if workers is None else workers
    splits = ((file_images(root, split, size, workers), split.class_ids) for split in (train, test))
    return Folders(tuple(map(printable, classes)), *splits, tuple(map(printable, notices)))


@contextlib.contextmanager
def told(flag: str) -> Iterator[None]:
    """Files and folders that cannot be read, as UsageError."""
    try:
        yield
    except ImageError as error:
        raise UsageError(f"{flag}: {error}; mend or remove this file") from None
    except OSError as error:
        raise UsageError(f"{flag}: {error.filename} cannot be read ({error.strerror})") from None


def list_splits(root: Path, flag: str) -> tuple[list[str], Split, Split]:
    """The names of the classes and the files of training and test. Raises UsageError and OSError."""
    test_folder = next((name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        raise UsageError(f"{flag}: {root} has no train/<class>/* and val/<class>/* (or test/<class>/*)")
    (classes, train_strays), (tested, test_strays) = (subfolders(root / name) for name in ("train", test_folder))
    differing = sorted(set(classes) ^ set(tested))
    if differing or not classes:
        example = f", {differing[0]} for example" if differing else ""
        raise UsageError(
            f"{flag}: {len(classes)} classes in {root / 'train'}, {len(tested)} in {root / test_folder}{example}; "
            "both need a folder for each class"
        )
    train, test = (list_split(root, name, classes, flag) for name in ("train", test_folder))
    strays = train_strays + test_strays
    return classes, train._replace(ignored=train.ignored + strays), test


def subfolders(folder: Path) -> tuple[list[str], int]:
    """Names of the folders in `folder`, in the order of their bytes, and the number of files beside them; hidden ones
    are left out. Raises OSError, also for a link to nowhere: a class must not be missed."""
    names, files = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                entry.stat()
                files += 1
    return sorted(names), files


def list_split(root: Path, split: str, classes: list[str], flag: str) -> Split:
    """All image files of the classes, sorted. Raises UsageError if a class has none, and OSError."""
    names, inodes, counts, ignored, loops = [], array("Q"), [], 0, []
    for name in classes:
        found = walk(root / split / name)
        if not found.images:
            raise UsageError(f"{flag}: {root / split / name} holds no images; fill it, or remove the class")
        for path, inode in sorted(found.images):
            names.append(os.fsencode(os.path.relpath(path, root)))
            inodes.append(inode)
        counts.append(len(found.images))
        ignored += found.ignored
        loops += found.loops
    class_ids = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Split(np.array(names), class_ids, np.array(inodes), ignored, tuple(sorted(loops)))


def walk(folder: Path) -> Listing:
    """All files in `folder` and its subfolders, hidden ones left out; links are followed. Asks the system about no
    single file but links: on a network that would take minutes for a million of them. Raises OSError."""
    found = Listing()
    waiting: list[tuple[str, tuple]] = [(str(folder), ())]  # a folder, and those that it is in
    while waiting:
        directory, above = waiting.pop()
        status = os.stat(directory)
        identity = status.st_dev, status.st_ino
        if identity in above:
            found.loops.append(directory)
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, (*above, identity)))
                elif entry.name.lower().endswith(ENDINGS):
                    found.images.append((entry.path, inode_of(entry)))
                else:
                    found.ignored += 1
    return found


def inode_of(entry: os.DirEntry) -> int:
    """The number of the file, or of the one that a link leads to. Raises OSError for a link to nowhere, and for what
    would never end when it is read."""
    if not entry.is_file():
        entry.stat()
        raise OSError(errno.EINVAL, "it is no file", entry.path)
    return entry.stat().st_ino if entry.is_symlink() else entry.inode()


def notices_of(root: Path, train: Split, test: Split) -> list[str]:
    """What is odd about the files, but no mistake for certain. Raises OSError."""
    ignored, loops = train.ignored + test.ignored, train.loops + test.loops
    notices = [f"{ignored} files in {root} are no images by their names, or in no class: ignored"] if ignored else []
    if loops:
        notices.append(
            f"{len(loops)} links in {root} lead to a folder that they are in, {loops[0]} for example: ignored"
        )
    return notices + notice_of_links(root, train, test)


def notice_of_links(root: Path, train: Split, test: Split) -> list[str]:
    """A notice of files that are in the data set more than once, as hard or symbolic links: in training and test, they
    would be tested on what they were trained on. Contents are not compared. Raises OSError."""

    def path(row: int) -> str:
        return os.fsdecode(train.names[row] if row < len(train.names) else test.names[row - len(train.names)])

    _, inverse, counts = np.unique(np.concatenate([train.inodes, test.inodes]), return_inverse=True, return_counts=True)
    same: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(counts[inverse] > 1).tolist():  # on other disks, or some network disks, still different
        status = os.stat(root / path(row))
        same.setdefault((status.st_dev, status.st_ino), []).append(row)
    groups = [rows for rows in same.values() if len(rows) > 1]
    if not groups:
        return []
    across = [rows for rows in groups if rows[0] < len(train.names) <= rows[-1]]
    classes = torch.cat([train.class_ids, test.class_ids]).tolist()
    mixed = [rows for rows in groups if len({classes[row] for row in rows}) > 1]
    rows = (across or mixed or groups)[0]
    return [
        f"{len(groups)} files in {root} are there more than once, as links: {len(across)} in training and test, "
        f"{len(mixed)} in several classes; {path(rows[0])} and {path(rows[-1])} for example"
    ]


def file_images(root: Path, split: Split, size: int, workers: int) -> FileImages:
    rows, stored = torch.arange(len(split.names)), torch.empty(0, 3, size, size, dtype=torch.uint8)
    return FileImages(root, split.names, rows, stored, size, workers)
