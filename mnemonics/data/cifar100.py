"""Reads CIFAR-100 from wherever the user has it: unpacked, as the official archive, or as PNG files; else downloads it.

The files come from outside: nothing in them can run code, and whatever is wrong with them is told in one line.
"""

import hashlib
import http.client
import os
import re
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.folders import list_splits, notices_of
from mnemonics.data.image_source import ImageSource
from mnemonics.data.images import DataError, read_rgb, usage_errors
from mnemonics.data.pickles import PickledArray, Reader
from mnemonics.engine.pickle_scan import PickleError

NUM_CLASSES, SIZE = 100, 32
OFFICIAL_COUNTS = (50_000, 10_000)
OFFICIAL_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
FOLDER, ARCHIVE, ARCHIVE_MD5 = "cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
WHAT_WORKS = (
    f"; what works is a folder that holds {ARCHIVE} ({URL}), the folder {FOLDER} unpacked from it, "
    f"or image files train/<class>/* and test/<class>/* of {NUM_CLASSES} classes"
)
LONGEST_NAME = 255  # characters, of a class; as file systems have it
Split = tuple[Tensor, Tensor]  # images uint8 [n, 3, 32, 32], contiguous, and class ids int64 [n]


def load_cifar100(config: ExperimentConfig) -> ImageSource:
    """Read CIFAR-100 from `config.data_dir` or, where nothing of it is there, download it to there.

    Looked for in this order: the folder cifar-100-python in `data_dir`; `data_dir` as that folder; the archive in or at
    `data_dir`; class folders of image files in `data_dir`. Smaller sets than the official one are taken, with a notice.

    Raises:
        UsageError: for files that are missing, damaged or not CIFAR-100, and for a download that fails.
    """
    with usage_errors(f"--data_dir {config.data_dir}", WHAT_WORKS):
        source = read_any(Path(os.path.expanduser(config.data_dir)))
    counts = len(source.train_images), len(source.test_images)
    if counts == OFFICIAL_COUNTS:
        return source
    found = "{} training and {} test images, not {} and {}".format(*counts, *OFFICIAL_COUNTS)
    return replace(source, notices=(*source.notices, f"CIFAR-100 in {config.data_dir}: {found}"))


def cifar100(names: list[str], train: Split, test: Split, notices: list[str]) -> ImageSource:
    mean, std = (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)
    return ImageSource("cifar100", tuple(names), mean, std, 4, True, tuple(notices), *train, *test)


def read_any(root: Path) -> ImageSource:
    """Find out in which form the data is there and read it. Raises DataError or OSError."""
    for folder in (root / FOLDER, root):
        files = {name: (folder / name).read_bytes() for name in OFFICIAL_MD5 if (folder / name).is_file()}
        if files:
            return read_python_version(files, str(folder))
    archive = root if root.is_file() else root / ARCHIVE
    if not archive.is_file():
        if (root / "train").is_dir() or (root / "test").is_dir():
            return read_image_folders(root)
        download(root)
    return read_python_version(read_archive(archive), f"{archive}: {FOLDER}")


def download(root: Path) -> None:
    """Put the official archive into the folder `root`: it appears there under its name only when it is whole."""
    # imported here because torchvision takes 140 MB and a second that runs on data at hand need not spend
    from torchvision.datasets.utils import download_url

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        try:
            download_url(URL, scratch, filename=ARCHIVE, md5=ARCHIVE_MD5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(f"there is no CIFAR-100, and the download failed ({error!r})") from error
        os.replace(Path(scratch, ARCHIVE), root / ARCHIVE)


def read_archive(archive: Path) -> dict[str, bytes]:
    """The files of the "python version", out of an archive that stays as it is: nothing in it can say where to write.
    Raises DataError."""
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder == FOLDER and name in OFFICIAL_MD5 and member.isreg():
                    files[name] = tar.extractfile(member).read()
            while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
                pass
    except Exception as error:  # tarfile and the decompressors promise no closed list of errors
        raise DataError(f"{archive} cannot be read as a tar archive ({error!r})") from error
    return files


def read_python_version(files: dict[str, bytes], shown: str) -> ImageSource:
    """Read the files train, test and meta; `shown` names their folder in messages. Raises DataError."""
    for name in OFFICIAL_MD5:
        if name not in files:
            raise DataError(f"{shown} has no file {name}")
    names = read_pickle(files["meta"], f"{shown}/meta").get("fine_label_names")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names)
        or not len(names) == len(set(names)) == NUM_CLASSES
    ):
        raise DataError(f"{shown}/meta: fine_label_names is not a list of {NUM_CLASSES} different names")
    train, test = (read_python_split(files[name], f"{shown}/{name}") for name in ("train", "test"))
    differ = ", ".join(name for name, md5 in OFFICIAL_MD5.items() if hashlib.md5(files[name]).hexdigest() != md5)
    notice = f"CIFAR-100 in {shown}: MD5 sums differ from the official ones ({differ}); used all the same"
    return cifar100(names, train, test, [notice] if differ else [])


def read_python_split(file: bytes, shown: str) -> Split:
    """Read and check one of the files train and test. Raises DataError."""
    content = read_pickle(file, shown)
    data, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIZE * SIZE,):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else "not an array"
        raise DataError(f"{shown}: data is {found}, needed is uint8 [n, {3 * SIZE * SIZE}]")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k < NUM_CLASSES for k in labels):
        raise DataError(f"{shown}: fine_labels is not a list of whole numbers from 0 to {NUM_CLASSES - 1}")
    if len(labels) != len(data):
        raise DataError(f"{shown}: {len(labels)} labels for {len(data)} images")
    missing = sorted(set(range(NUM_CLASSES)) - set(labels))
    if missing:
        raise DataError(f"{shown}: no image of class {missing[0]}; {len(missing)} of {NUM_CLASSES} classes are missing")
    images = np.require(data, requirements=("C", "W")).reshape(-1, 3, SIZE, SIZE)  # copies only what torch cannot share
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64)


def read_pickle(file: bytes, shown: str) -> dict[Any, Any]:
    """Unpickle a dictionary from a file that nobody vouches for. Raises DataError."""
    try:
        content = Reader(file).load()
    except PickleError as error:
        raise DataError(f"{shown} is damaged or not a file of CIFAR-100 ({error})") from error
    if type(content) is not dict:
        raise DataError(f"{shown} holds no dictionary")
    return {key: value.array if isinstance(value, PickledArray) else value for key, value in content.items()}


def read_image_folders(root: Path) -> ImageSource:
    """Read train/<class>/* and test/<class>/*; class ids are the alphabetical order of the folder names, and images of
    a class come in the order of the numbers in their names."""
    train, test = list_splits(root, ("test",), natural_key)
    if len(train.class_names) != NUM_CLASSES:
        raise DataError(f"{root} has {len(train.class_names)} class folders, not {NUM_CLASSES}")
    splits = [(read_images(root, split.names), split.class_ids) for split in (train, test)]
    return cifar100(train.class_names, *splits, notices_of(root, train, test))


def natural_key(found: tuple[str, int]) -> tuple[list[str | int], str]:
    """For sorting (path, inode) by path, 2.png before 10.png."""
    path, _ = found
    parts = re.split(r"(\d+)", path)  # text and digits take turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path


def read_images(root: Path, names: np.ndarray) -> Tensor:
    """Decode the files: uint8 [n, 3, 32, 32]. Raises DataError."""
    images = torch.empty(len(names), 3, SIZE, SIZE, dtype=torch.uint8)
    for image, name in zip(images, names, strict=True):
        path = root / os.fsdecode(name)
        found = read_rgb(path)
        if found.size != (SIZE, SIZE):
            raise DataError(f"{path} has {found.width}x{found.height} pixels, needed is {SIZE}x{SIZE}")
        image.copy_(torch.from_numpy(np.array(found)).permute(2, 0, 1))
    return images
