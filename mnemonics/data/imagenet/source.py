"""Finds the images of every class, in folders or inside the archives of ILSVRC2012, and reads them.

Listing classes is cheap (a folder, or the 1000 headers of the outer archive). The images of a class are listed only
when it is its turn, so that 138 GB of archives are read once, front to back, and never unpacked as a whole.
"""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mnemonics.data.imagenet.labels import ANNOTATIONS, WNID, validation_labels
from mnemonics.engine.errors import UsageError

SPLITS = ("train", "val")
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")  # those that torchvision loads
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}
WHAT_WORKS = (
    "what works is a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (val may be unsorted), or with the archives "
    + ", ".join(ARCHIVES.values())
)


class Damaged(Exception):
    """Why a folder or an archive cannot be read on."""


class ImageFile(NamedTuple):
    """An image that is a whole file or, where `offset` is given, `size` bytes of an archive."""

    name: str
    path: str
    offset: int | None = None
    size: int = 0

    def read(self) -> bytes:
        """Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset or 0)
            return file.read(-1 if self.offset is None else self.size)


class ClassImages(NamedTuple):
    """Where the images of one class are: `files`, the folder `path`, or the archive at `offset` inside of `path`."""

    split: str
    wnid: str
    path: str
    offset: int | None = None
    size: int = 0
    files: tuple[ImageFile, ...] | None = None

    def images(self) -> Iterator[ImageFile]:
        """Raises Damaged."""
        if self.files is not None:
            return iter(self.files)
        return folder_images(Path(self.path)) if self.offset is None else tar_images(self)


class Source(NamedTuple):
    """The classes of each split by wnid, the images of no known class ("file: reason"), whether all is in archives."""

    train: dict[str, ClassImages]
    val: dict[str, ClassImages]
    strays: list[str]
    all_archives: bool


def is_clutter(name: str) -> bool:
    """Whether it is one of the files that systems leave everywhere, such as .DS_Store, ._x.JPEG and Thumbs.db."""
    return name.startswith(".") or name.lower() in CLUTTER


def find_source(src: Path, devkit: Path | None) -> Source:
    """Look for folders first, then for archives. Raises UsageError and OSError."""
    if not src.is_dir():
        raise UsageError(f"--src {src}: there is no such folder; {WHAT_WORKS}")
    for split in SPLITS:
        if not (src / split).is_dir() and not (src / ARCHIVES[split]).is_file():
            raise UsageError(f"--src {src}: holds neither {split}/ nor {ARCHIVES[split]}; {WHAT_WORKS}")
    in_folder = {split: (src / split).is_dir() for split in SPLITS}
    train = class_folders(src, "train") if in_folder["train"] else train_archive(src)
    if not train:
        where = src / ("train" if in_folder["train"] else ARCHIVES["train"])
        raise UsageError(f"--src {src}: {where} holds no classes; {WHAT_WORKS}")
    val = class_folders(src, "val") if in_folder["val"] else {}
    strays = loose_images(src, "train") if in_folder["train"] else []
    if val:
        strays += loose_images(src, "val")
    else:
        files = folder_images(src / "val") if in_folder["val"] else val_archive(src)
        val, unknown = sorted_by_class(files, validation_labels(src, devkit), src)
        return Source(train, val, strays + unknown, not any(in_folder.values()))
    if devkit is not None:
        raise UsageError(f"--devkit {devkit}: {src / 'val'} is sorted by class already; leave the flag out")
    return Source(train, val, strays, not any(in_folder.values()))


def class_folders(src: Path, split: str) -> dict[str, ClassImages]:
    """The folders train/<wnid> or val/<wnid>; none where val is unsorted.

    Raises:
        UsageError: for any other folder, because a wrong list of classes would draw a wrong subset without a word.
    """
    with os.scandir(src / split) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not is_clutter(e.name))
    if split == "val" and folders in ([], ["images"]):
        return {}
    for name in folders:
        if not WNID.fullmatch(name):
            raise UsageError(f"--src {src}: the folder {split}/{name} is not a class such as n01440764; move it away")
    return {name: ClassImages(split, name, str(src / split / name)) for name in folders}


def loose_images(src: Path, split: str) -> list[str]:
    """Images beside the class folders, as where somebody stopped sorting them."""
    with os.scandir(src / split) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.is_dir())
    return [f"{split}/{name}: lies in no class folder" for name in names if not is_clutter(name)]


def folder_images(folder: Path) -> Iterator[ImageFile]:
    """The files of a folder or, where it holds one, of its subfolder `images` (as in Tiny-ImageNet), by name.

    Raises:
        Damaged: where it cannot be listed.
    """
    if (folder / "images").is_dir():
        folder = folder / "images"
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Damaged(f"cannot be listed ({error.strerror})") from error
    for name in names:
        if not is_clutter(name) and name != ANNOTATIONS:
            yield ImageFile(name, os.path.join(folder, name))


def plain_members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The plain files of an archive with their names, without the folders they are in. Links and devices are no images.

    Only names and positions are taken from an archive, nothing in it says where anything is written.

    Raises:
        tarfile.TarError: where the archive is damaged or not whole.
    """
    for member in tar:
        name = member.name.rsplit("/", 1)[-1]
        if member.isreg() and not member.issparse() and not is_clutter(name):
            yield name, member
        tar.members.clear()  # else it keeps every header that it has seen
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the mark of the end; tarfile does not mind
        raise tarfile.ReadError(f"it breaks off at byte {tar.offset}")


def archive_members(src: Path, name: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """As `plain_members`. Raises UsageError."""
    try:
        with tarfile.open(src / name, "r:") as tar:
            yield from plain_members(tar)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(f"--src {src}: {name} is damaged or not whole ({error}); download it again") from error


def train_archive(src: Path) -> dict[str, ClassImages]:
    """The archives <wnid>.tar inside of the training archive. Raises UsageError."""
    path, found = str(src / ARCHIVES["train"]), {}
    for name, member in archive_members(src, ARCHIVES["train"]):
        wnid = name.removesuffix(".tar")
        if not WNID.fullmatch(wnid) or wnid == name:
            raise UsageError(f"--src {src}: {ARCHIVES['train']} holds {name}, not only <wnid>.tar; download it again")
        found[wnid] = ClassImages("train", wnid, path, member.offset_data, member.size)
    return found


def val_archive(src: Path) -> Iterator[ImageFile]:
    """The images inside of the validation archive. Raises UsageError."""
    for name, member in archive_members(src, ARCHIVES["val"]):
        yield ImageFile(name, str(src / ARCHIVES["val"]), member.offset_data, member.size)


def tar_images(where: ClassImages) -> Iterator[ImageFile]:
    """The images of an archive inside of an archive, in the order they lie there. Raises Damaged."""
    end = where.offset + where.size
    try:
        with open(where.path, "rb") as file:
            file.seek(where.offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for name, member in plain_members(tar):
                    if member.offset_data + member.size > end:  # tarfile does not know where the inner one ends
                        raise Damaged("the archive of this class is not whole")
                    yield ImageFile(name, where.path, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise Damaged(f"the archive of this class is damaged ({error})") from error


def sorted_by_class(
    files: Iterator[ImageFile], labels: dict[str, str], src: Path
) -> tuple[dict[str, ClassImages], list[str]]:
    """Returns the validation images by class, and those without a label. Raises UsageError."""
    by_class, strays = defaultdict(list), []
    try:
        for file in files:
            if file.name in labels:
                by_class[labels[file.name]].append(file)
            else:
                strays.append(f"val/{file.name}: nothing says which class it is")
    except Damaged as error:
        raise UsageError(f"--src {src}: val {error}") from error
    return {wnid: ClassImages("val", wnid, str(src), files=tuple(found)) for wnid, found in by_class.items()}, strays
