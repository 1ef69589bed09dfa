"""Finds the images of ImageNet (ILSVRC2012), class by class, in folders or in the archives as downloaded.

Archives are read where they lie. torchvision's ImageNet unpacks them whole: another 145 GB even for 100 of the 1000
classes, from the start again after an interruption. Its parser of the devkit is used.
"""

import os
import re
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mnemonics.data.folders import ENDINGS
from mnemonics.engine.errors import UsageError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
WNID = re.compile(r"n\d{8}")
WHAT_WORKS = "what works is a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or with the archives as downloaded"


class ImageFile(NamedTuple):
    """A file or, where `size` is not None, that many bytes of an archive from `offset` on."""

    name: str
    path: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Lister = Callable[[], list[ImageFile]]  # a class is listed when it is its turn: an archive is then read front to back


class Source(NamedTuple):
    """What lists the images of each class, by wnid; and the files that belong to no class, as "file: reason"."""

    train: dict[str, Lister]
    val: dict[str, Lister]
    strays: list[str]


def find_source(src: Path, devkit: Path | None) -> Source:
    """Look for folders first, then for archives. Raises UsageError and OSError."""
    for split, archive in ARCHIVES.items():
        if not (src / split).is_dir() and not (src / archive).is_file():
            raise UsageError(f"--src {src}: holds neither {split}/ nor {archive}; {WHAT_WORKS}")
    (train, strays), (val, val_strays) = (class_folders(src / split) for split in ARCHIVES)
    if not (src / "train").is_dir():
        train = train_archive(src / ARCHIVES["train"])
    if not train:
        raise UsageError(f"--src {src}: there are no training classes such as n01440764; {WHAT_WORKS}")
    if not val:
        images = folder_images(src / "val") if (src / "val").is_dir() else archive_images(src / ARCHIVES["val"])
        val, val_strays = sorted_by_class(images, validation_labels(src, devkit))
    return Source(train, val, strays + val_strays)


def class_folders(folder: Path) -> tuple[dict[str, Lister], list[str]]:
    """The classes in train/ or val/, if it is there, and what lies beside them. Raises OSError."""
    classes, strays = {}, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if WNID.fullmatch(path.name) and path.is_dir():
            classes[path.name] = partial(folder_images, path)
        elif is_image(path.name) or (path.is_dir() and not path.name.startswith((".", "__"))):
            strays.append(f"{folder.name}/{path.name}: belongs to no class such as n01440764")
    return classes, strays


def folder_images(folder: Path) -> list[ImageFile]:
    """The images of a folder or, where it holds one, of its subfolder `images`, as in Tiny-ImageNet. Raises OSError."""
    if (folder / "images").is_dir():
        folder = folder / "images"
    return [ImageFile(name, str(folder / name)) for name in sorted(os.listdir(folder)) if is_image(name)]


def is_image(name: str) -> bool:
    """Whether main.py would take it for an image. Hidden ones, such as ._x.JPEG, are left behind by systems."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def train_archive(path: Path) -> dict[str, Lister]:
    """The archives <wnid>.tar inside of the training archive. Raises UsageError."""
    found = {name.removesuffix(".tar"): offset for name, offset, _ in members(path)}
    return {wnid: partial(archive_images, path, offset) for wnid, offset in found.items() if WNID.fullmatch(wnid)}


def archive_images(path: Path, offset: int = 0) -> list[ImageFile]:
    """The images of the archive that begins at `offset` of a file. Raises UsageError."""
    return [ImageFile(name, str(path), start, size) for name, start, size in members(path, offset) if is_image(name)]


def members(path: Path, offset: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name without folders, position and size in bytes of each plain file. Raises UsageError for a damaged archive."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg():
                        yield os.path.basename(member.name), member.offset_data, member.size
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile does not mind a missing end
                    raise tarfile.ReadError(f"breaks off at byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(f"--src: {path} is damaged or not whole ({error}); download it again") from error


def sorted_by_class(images: list[ImageFile], labels: dict[str, str]) -> tuple[dict[str, Lister], list[str]]:
    """The validation images by class, and those without a label."""
    by_class = defaultdict(list)
    for image in images:
        by_class[labels.get(image.name)].append(image)
    strays = [f"val/{image.name}: nothing says which class it is" for image in by_class.pop(None, [])]
    return {wnid: partial(list, found) for wnid, found in by_class.items()}, strays


def validation_labels(src: Path, devkit: Path | None) -> dict[str, str]:
    """File name -> wnid, of `devkit`, else val/val_annotations.txt, else the devkit in `src`. Raises UsageError."""
    annotations = src / "val" / "val_annotations.txt"
    if devkit or not annotations.is_file():
        return devkit_labels(devkit or src / DEVKIT)
    try:
        return dict(line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise UsageError(f"--src: {annotations} has lines not like val_0.JPEG<TAB>n03444034; get it again") from error


def devkit_labels(archive: Path) -> dict[str, str]:
    """File name -> wnid. torchvision opens the devkit only if it has the official MD5. Raises UsageError."""
    from torchvision.datasets import imagenet  # here: most runs do not need it

    with tempfile.TemporaryDirectory() as folder:
        try:
            imagenet.parse_devkit_archive(folder, str(archive.resolve()))
        except RuntimeError as error:
            message = f"--devkit: val/ is unsorted, and {archive} is not there or not image-net.org's; download it"
            raise UsageError(message) from error
        _, wnids = imagenet.load_meta_file(folder)
    return {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(wnids, 1)}
