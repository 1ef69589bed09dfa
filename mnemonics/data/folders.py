"""Data sets that are folders of image files: train/<class>/* and val/<class>/* (or test/<class>/*)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnemonics.config import UsageError
from mnemonics.data.files import FileImages
from mnemonics.distributed import local_world

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
TEST_FOLDERS = ("val", "test")  # the first one that is there
LARGEST_SIZE = 224  # pixels, unless --image_size says more


class Split(NamedTuple):
    """The files of train/ or val/: paths below the root as bytes [n], class by class, and class ids int64 [n]."""

    names: np.ndarray
    class_ids: Tensor
    ignored: int  # files that are no images by their names


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
        UsageError: for missing folders, classes that differ between training and test, and classes without images.
    """
    test_folder = next((name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        raise UsageError(f"{flag}: {root} has no train/<class>/* and val/<class>/* (or test/<class>/*)")
    classes = subfolders(root / "train")
    tested = subfolders(root / test_folder)
    differing = sorted(set(classes) ^ set(tested))
    if differing or not classes:
        example = f", {differing[0]} for example" if differing else ""
        raise UsageError(
            f"{flag}: {len(classes)} classes in {root / 'train'}, {len(tested)} in {root / test_folder}{example}; "
            "both need a folder for each class"
        )
    train, test = (list_split(root, name, classes, flag) for name in ("train", test_folder))
    if size is None:
        size = min(short_side(root / os.fsdecode(train.names[0]), flag), LARGEST_SIZE)
    workers = min(max((os.cpu_count() or 1) // local_world(), 1), 16) if workers is None else workers
    ignored = train.ignored + test.ignored
    notices = (f"{ignored} files in {root} are no images by their names: ignored",) if ignored else ()
    splits = ((file_images(root, split, size, workers), split.class_ids) for split in (train, test))
    return Folders(tuple(classes), *splits, notices)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, hidden ones left out, in the order of their bytes."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_split(root: Path, split: str, classes: list[str], flag: str) -> Split:
    """All image files of the classes, sorted. Raises UsageError if a class has none."""
    names, counts, ignored = [], [], 0
    for name in classes:
        found = list(files_below(root / split / name))
        images = sorted(path for path in found if path.lower().endswith(ENDINGS))
        if not images:
            raise UsageError(f"{flag}: {root / split / name} holds no images; fill it, or remove the class")
        ignored += len(found) - len(images)
        names += [os.fsencode(os.path.relpath(path, root)) for path in images]
        counts.append(len(images))
    class_ids = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Split(np.array(names), class_ids, ignored)


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all files in `folder` and its subfolders, hidden ones left out."""
    for directory, subdirectories, files in os.walk(folder, followlinks=True):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        yield from (os.path.join(directory, name) for name in files if not name.startswith("."))


def short_side(path: Path, flag: str) -> int:
    """Of an image file, in pixels. Raises UsageError."""
    try:
        with Image.open(path) as image:
            return min(image.size)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{flag}: {path} cannot be read as an image ({reason}); mend or remove this file") from None


def file_images(root: Path, split: Split, size: int, workers: int) -> FileImages:
    rows, stored = torch.arange(len(split.names)), torch.empty(0, 3, size, size, dtype=torch.uint8)
    return FileImages(root, split.names, rows, stored, size, workers)
