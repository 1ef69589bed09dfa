"""Reads CIFAR-100 from wherever the user has it: unpacked, as the official archive, or as PNG files; else downloads it.

The files come from outside: nothing in them can run code, and whatever is wrong with them is told in one line.
"""

import hashlib
import http.client
import os
import re
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemonics.data.folders import Split, inode_of, notice_of_links
from mnemonics.data.images import ImageError, read_rgb
from mnemonics.data.pickles import PickledArray, PickleError, Reader
from mnemonics.engine.errors import UsageError, printable

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
    f"what works is a folder that holds {ARCHIVE} ({URL}), the folder {FOLDER} unpacked from it, "
    f"or PNG files train/<class>/*.png and test/<class>/*.png of {NUM_CLASSES} classes"
)
LONGEST_NAME = 255  # characters, of a class; as file systems have it


class Cifar100(NamedTuple):
    """The whole data set. A split is (images uint8 [n, 3, 32, 32] contiguous, class ids int64 [n])."""

    class_names: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    notices: tuple[str, ...]


class DataError(Exception):
    """What is wrong with which file; `read_cifar100` turns it into a UsageError."""


def read_cifar100(data_dir: str) -> Cifar100:
    """Read CIFAR-100 from `data_dir` or, where nothing of it is there, download it to `data_dir`.

    Looked for in this order: the folder cifar-100-python in `data_dir`; `data_dir` as that folder; the archive in or at
    `data_dir`; PNG class folders in `data_dir`. Smaller sets than the official one are taken, with a notice.

    Raises:
        UsageError: for files that are missing, damaged or not CIFAR-100, and for a download that fails.
    """
    try:
        data = read_any(Path(os.path.expanduser(data_dir)))
    except (DataError, OSError) as error:
        line = f"--data_dir {data_dir}: {error}; {WHAT_WORKS}"
        raise UsageError(" ".join(line.splitlines())) from error
    counts, notices = (len(data.train[1]), len(data.test[1])), data.notices
    if counts != OFFICIAL_COUNTS:
        found = "{} training and {} test images, not {} and {}".format(*counts, *OFFICIAL_COUNTS)
        notices = (*notices, f"CIFAR-100 in {data_dir}: {found}")
    class_names = tuple(map(printable, data.class_names))
    return data._replace(class_names=class_names, notices=tuple(map(printable, notices)))


def read_any(root: Path) -> Cifar100:
    """Find out in which form the data is there and read it. Raises DataError or OSError."""
    if (root / FOLDER).is_dir():
        return read_python_folder(root / FOLDER, str(root / FOLDER))
    if any((root / name).is_file() for name in OFFICIAL_MD5):
        return read_python_folder(root, str(root))
    if root.is_file():
        return read_archive(root, keep=root.name == ARCHIVE)
    if (root / ARCHIVE).is_file():
        return read_archive(root / ARCHIVE)
    if (root / "train").is_dir() or (root / "test").is_dir():
        return read_png_folders(root)
    download(root)
    return read_archive(root / ARCHIVE)


def download(root: Path) -> None:
    """Put the official archive into the folder `root`: it appears there under its name only when it is whole."""
    # imported here because torchvision takes 140 MB and a second that runs on data at hand need not spend
    from torchvision.datasets.utils import download_url

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        try:
            download_url(URL, scratch, filename=ARCHIVE, md5=ARCHIVE_MD5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(f"there is no CIFAR-100, and the download failed ({reason(error)})") from error
        os.replace(Path(scratch, ARCHIVE), root / ARCHIVE)


def read_archive(archive: Path, keep: bool = True) -> Cifar100:
    """Unpack `archive` and read it; with `keep`, leave the unpacked folder next to it where that is possible.

    The folder gets its name only after everything in it was read: a damaged archive leaves nothing behind that would
    hide a better one put in its place.
    """
    keep = keep and os.access(archive.parent, os.W_OK)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=archive.parent if keep else None) as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
                while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
                    pass
        except Exception as error:  # tarfile and the decompressors promise no closed list of errors
            raise DataError(f"{archive} cannot be unpacked as a tar archive ({reason(error)})") from error
        folder = Path(scratch, FOLDER)
        if not folder.is_dir():
            raise DataError(f"{archive} holds no folder {FOLDER}")
        data = read_python_folder(folder, f"{archive}: {FOLDER}")
        if keep:
            with suppress(OSError):  # another run was faster: its folder holds the same
                os.rename(folder, archive.parent / FOLDER)
    return data


def read_python_folder(folder: Path, shown: str) -> Cifar100:
    """Read the files train, test and meta of the "python version"; `shown` names the folder in messages."""
    for name in OFFICIAL_MD5:
        if not (folder / name).is_file():
            raise DataError(f"{shown} has no file {name}")
    meta = read_pickle(folder / "meta", f"{shown}/meta")
    names = meta.get("fine_label_names")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names)
        or not len(names) == len(set(names)) == NUM_CLASSES
    ):
        raise DataError(f"{shown}/meta: fine_label_names is not a list of {NUM_CLASSES} different names")
    train, test = (read_python_split(folder / name, f"{shown}/{name}") for name in ("train", "test"))
    differ = [name for name, md5 in OFFICIAL_MD5.items() if md5_of(folder / name) != md5]
    notice = f"CIFAR-100 in {shown}: MD5 sums differ from the official ones ({', '.join(differ)}); used all the same"
    return Cifar100(tuple(names), train, test, (notice,) if differ else ())


def read_python_split(path: Path, shown: str) -> tuple[Tensor, Tensor]:
    """Read and check one of the files train and test: (uint8 [n, 3, 32, 32], int64 [n])."""
    content = read_pickle(path, shown)
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


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def read_pickle(path: Path, shown: str) -> dict[Any, Any]:
    """Unpickle a dictionary from a file that nobody vouches for. Raises DataError and OSError."""
    try:
        content = Reader(path.read_bytes()).load()
    except PickleError as error:
        raise DataError(f"{shown} is damaged or not a file of CIFAR-100 ({error})") from error
    if type(content) is not dict:
        raise DataError(f"{shown} holds no dictionary")
    return {key: value.array if isinstance(value, PickledArray) else value for key, value in content.items()}


def read_png_folders(root: Path) -> Cifar100:
    """Read train/<class>/*.png and test/<class>/*.png; class ids are the alphabetical order of the folder names."""
    names = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(f"{root / split} is not there")
        names[split] = sorted(p.name for p in (root / split).iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(names[split]) != NUM_CLASSES:
            raise DataError(f"{root / split} has {len(names[split])} class folders, not {NUM_CLASSES}")
    odd = sorted(set(names["train"]) ^ set(names["test"]))
    if odd:
        raise DataError(f"{root}: class folder {odd[0]} is in only one of train and test")
    files = [list_png_split(root, split, names["train"]) for split in ("train", "test")]
    splits = [(read_pngs(root, split.names), split.class_ids) for split in files]
    return Cifar100(tuple(names["train"]), *splits, tuple(notice_of_links(root, *files)))


def list_png_split(root: Path, split: str, class_names: list[str]) -> Split:
    """The files of train/ or test/ class by class, 2.png before 10.png. Raises DataError and OSError."""
    names, inodes, counts = [], [], []
    for name in class_names:
        with os.scandir(root / split / name) as entries:
            found = [(entry.name, inode_of(entry)) for entry in entries if is_png(entry.name)]
        if not found:
            raise DataError(f"{root / split / name} has no PNG file")
        found.sort(key=natural_key)
        names += [os.fsencode(os.path.join(split, name, file)) for file, _ in found]
        inodes += [inode for _, inode in found]
        counts.append(len(found))
    class_ids = torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts))
    return Split(np.array(names), class_ids, np.array(inodes, np.uint64), 0, ())


def is_png(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(".")


def natural_key(found: tuple[str, int]) -> tuple[list[str | int], str]:
    name, _ = found
    parts = re.split(r"(\d+)", name)  # text and digits take turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def read_pngs(root: Path, names: np.ndarray) -> Tensor:
    """Decode the files: uint8 [n, 3, 32, 32]."""
    pixels = torch.from_numpy(np.stack([read_png(root / os.fsdecode(name)) for name in names]))  # [n, 32, 32, 3]
    return pixels.permute(0, 3, 1, 2).contiguous()


def read_png(path: Path) -> np.ndarray:
    """Decode one file to uint8 [32, 32, 3]. Raises DataError."""
    try:
        image = read_rgb(path, ("PNG",))
    except ImageError as error:
        raise DataError(str(error)) from error
    if image.size != (SIZE, SIZE):
        raise DataError(f"{path} has {image.width}x{image.height} pixels, needed is {SIZE}x{SIZE}")
    return np.asarray(image)


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
