"""Reads CIFAR-10 or CIFAR-100 from wherever the user has it: unpacked, as the official archive, or as PNG files; else
downloads it.

The files come from outside: nothing in them can run code, and whatever is wrong with them is told in one line.
"""

import hashlib
import http.client
import os
import re
import tarfile
import tempfile
from dataclasses import dataclass
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

SIZE = 32
LARGEST_FILE = 2**28  # bytes, of a file in an archive; the largest has 156 million
OFFICIAL_COUNTS = (50_000, 10_000)
LONGEST_NAME = 255  # characters, of a class; as file systems have it
Split = tuple[Tensor, Tensor]  # images uint8 [n, 3, 32, 32], contiguous, and class ids int64 [n]
Content = tuple[list[str], Split, Split, list[str]]  # class names, training images, test images, notices


@dataclass(frozen=True)
class Cifar:
    """What tells the two data sets apart."""

    title: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def official(self) -> type:
        """torchvision's class of the data set, which knows address, file names and MD5 sums."""
        from torchvision import datasets  # here: importing it (and with it torch's compiler) takes a second and 150 MB

        return getattr(datasets, self.title.replace("-", ""))

    @property
    def md5(self) -> dict[str, str]:
        """Of the files of the "python version", by their names."""
        meta = self.official.meta
        return dict([*self.official.train_list, *self.official.test_list, (meta["filename"], meta["md5"])])


CIFAR = {
    "cifar10": Cifar("CIFAR-10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Cifar("CIFAR-100", 100, (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)),
}


def load_cifar(config: ExperimentConfig) -> ImageSource:
    """Read `config.dataset` from `config.data_dir` or, where nothing of it is there, download it to there.

    Looked for in this order: the folder cifar-100-python (or cifar-10-batches-py) in `data_dir`; `data_dir` as that
    folder; the archive in or at `data_dir`; class folders of image files in `data_dir`. Smaller sets than the official
    one are taken, with a notice.

    Raises:
        UsageError: for files that are missing, damaged or of another data set, and for a download that fails.
    """
    kind, official = CIFAR[config.dataset], CIFAR[config.dataset].official
    files = f"{official.filename} ({official.url}), the folder {official.base_folder} unpacked from it, or image files"
    works = (
        f"; what works is a folder that holds {files} train/<class>/* and test/<class>/* of {kind.num_classes} classes"
    )
    with usage_errors(f"--data_dir {config.data_dir}", works):
        names, train, test, notices = read_any(Path(os.path.expanduser(config.data_dir)), kind)
    counts = len(train[0]), len(test[0])
    if counts != OFFICIAL_COUNTS:
        found = "{} training and {} test images, not {} and {}".format(*counts, *OFFICIAL_COUNTS)
        notices = [*notices, f"{kind.title} in {config.data_dir}: {found}"]
    return ImageSource(config.dataset, tuple(names), kind.mean, kind.std, 4, True, tuple(notices), *train, *test)


def would_download(config: ExperimentConfig) -> bool:
    """Whether `load_source` would download the data set: it is one of these, and nothing of it is in its folder."""
    if config.dataset not in CIFAR:
        return False
    kind, root = CIFAR[config.dataset], Path(os.path.expanduser(config.data_dir))
    files = [f"{folder}{name}" for folder in (f"{kind.official.base_folder}/", "") for name in kind.md5]
    places = (root / name for name in (kind.official.filename, "train", "test", *files))
    return not (root.is_file() or any(place.exists() for place in places))


def read_any(root: Path, kind: Cifar) -> Content:
    """Find out in which form the data is there and read it. Raises DataError or OSError."""
    for folder in (root / kind.official.base_folder, root):
        files = {name: (folder / name).read_bytes() for name in kind.md5 if (folder / name).is_file()}
        if files:
            return read_python_version(files, str(folder), kind)
    archive = root if root.is_file() else root / kind.official.filename
    if not archive.is_file():
        if (root / "train").is_dir() or (root / "test").is_dir():
            return read_image_folders(root, kind)
        download(root, kind)
    return read_python_version(read_archive(archive, kind), f"{archive}: {kind.official.base_folder}", kind)


def download(root: Path, kind: Cifar) -> None:
    """Put the official archive into the folder `root`: it appears there under its name only when it is whole."""
    from torchvision.datasets.utils import download_url  # here: see `Cifar.official`

    official, name = kind.official, kind.official.filename
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        try:
            download_url(official.url, scratch, filename=name, md5=official.tgz_md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(f"there is no {kind.title}, and the download failed ({error!r})") from error
        os.replace(Path(scratch, name), root / name)


def read_archive(archive: Path, kind: Cifar) -> dict[str, bytes]:
    """The files of the "python version", out of an archive that stays as it is: nothing in it can say where to write.
    Raises DataError."""
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").partition("/")
                wanted = folder == kind.official.base_folder and name in kind.md5
                if wanted and member.isreg() and member.size < LARGEST_FILE:
                    files[name] = tar.extractfile(member).read()
            while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
                pass
    except Exception as error:  # tarfile and the decompressors promise no closed list of errors
        raise DataError(f"{archive} cannot be read as a tar archive ({error!r})") from error
    return files


def read_python_version(files: dict[str, bytes], shown: str, kind: Cifar) -> Content:
    """Read the files of the "python version"; `shown` names their folder in messages. Raises DataError."""
    for name in kind.md5:
        if name not in files:
            raise DataError(f"{shown} has no file {name}")
    meta, key = kind.official.meta["filename"], kind.official.meta["key"]
    names = read_pickle(files[meta], f"{shown}/{meta}").get(key)
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names)
        or not len(names) == len(set(names)) == kind.num_classes
    ):
        raise DataError(f"{shown}/{meta}: {key} is not a list of {kind.num_classes} different names")
    splits = []
    for parts in (kind.official.train_list, kind.official.test_list):
        read = [read_python_part(files[name], f"{shown}/{name}", kind) for name, _ in parts]
        images, class_ids = (torch.cat(tensors) for tensors in zip(*read, strict=True))
        if missing := sorted(set(range(kind.num_classes)) - set(class_ids.tolist())):
            few = f"no image of class {missing[0]}; {len(missing)} of {kind.num_classes} classes are missing"
            raise DataError(f"{shown}/{', '.join(name for name, _ in parts)}: {few}")
        splits.append((images, class_ids))
    differ = ", ".join(name for name, md5 in kind.md5.items() if hashlib.md5(files[name]).hexdigest() != md5)
    notice = f"{kind.title} in {shown}: MD5 sums differ from the official ones ({differ}); used all the same"
    return names, *splits, [notice] if differ else []


def read_python_part(file: bytes, shown: str, kind: Cifar) -> Split:
    """Read and check one of the files with images. Raises DataError."""
    content, key = read_pickle(file, shown), kind.official.meta["key"].replace("_names", "s")  # [fine_]labels
    data, labels = content.get("data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIZE * SIZE,):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else "not an array"
        raise DataError(f"{shown}: data is {found}, needed is uint8 [n, {3 * SIZE * SIZE}]")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k < kind.num_classes for k in labels):
        raise DataError(f"{shown}: {key} is not a list of whole numbers from 0 to {kind.num_classes - 1}")
    if len(labels) != len(data):
        raise DataError(f"{shown}: {len(labels)} labels for {len(data)} images")
    images = np.require(data, requirements=("C", "W")).reshape(-1, 3, SIZE, SIZE)  # copies only what torch cannot share
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64)


def read_pickle(file: bytes, shown: str) -> dict[Any, Any]:
    """Unpickle a dictionary from a file that nobody vouches for. Raises DataError."""
    try:
        content = Reader(file).load()
    except PickleError as error:
        raise DataError(f"{shown} is damaged or not a file of CIFAR ({error})") from error
    if type(content) is not dict:
        raise DataError(f"{shown} holds no dictionary")
    return {key: value.array if isinstance(value, PickledArray) else value for key, value in content.items()}


def read_image_folders(root: Path, kind: Cifar) -> Content:
    """Read train/<class>/* and test/<class>/*; class ids are the alphabetical order of the folder names, and images of
    a class come in the order of the numbers in their names."""
    train, test = list_splits(root, ("test",), natural_key)
    if len(train.class_names) != kind.num_classes:
        raise DataError(f"{root} has {len(train.class_names)} class folders, not {kind.num_classes}")
    splits = [(read_images(root, split.names), split.class_ids) for split in (train, test)]
    return train.class_names, *splits, notices_of(root, train, test)


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
