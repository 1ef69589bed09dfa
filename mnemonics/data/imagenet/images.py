"""Makes the images of one class: links, copies or resized JPEG files, each of which appears whole or not at all.

EXIF orientation is not applied: the loaders of this field (PIL's convert("RGB"), torchvision's ImageFolder) do not
apply it either, so that published results are of images as they are stored. Resized files do not have the tag any more.
"""

import errno
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mnemonics.data.imagenet.source import ENDINGS, ClassImages, Damaged, ImageFile
from mnemonics.engine.errors import UsageError

PARTIAL = ".partial"


@dataclass(frozen=True)
class Job:
    """What to make of every image. `resize` is (short side,) or (width, height) in pixels, or None: as it is."""

    dst: Path
    resize: tuple[int, ...] | None
    quality: int
    link: str
    check: bool


class Report(NamedTuple):
    """What became of the images of one class; each problem is "split/wnid/file: reason"."""

    split: str
    made: int
    kept: int
    problems: list[str]


class BadImage(Exception):
    """Why a file cannot be used."""


def make_class(job: Job, where: ClassImages) -> Report:
    """Make what is missing of one class. Raises OSError where `job.dst` cannot be written, and UsageError."""
    place = f"{where.split}/{where.wnid}"
    folder, counts, problems = job.dst / place, [0, 0], []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for image in where.images():
            try:
                counts[make_image(job, image, folder)] += 1
            except BadImage as error:
                problems.append(f"{place}/{image.name}: {error}")
    except Damaged as error:
        problems.append(f"{place}: {error}")
    if not sum(counts) and not problems:
        problems.append(f"{place}: holds no images")
    return Report(where.split, counts[True], counts[False], problems)


def make_image(job: Job, image: ImageFile, folder: Path) -> bool:
    """Returns whether something had to be made. Raises BadImage, OSError (of `folder`) and UsageError."""
    if not image.name.lower().endswith(ENDINGS):
        raise BadImage("not the name of an image file")
    if image.offset is None and not os.path.isfile(image.path):
        raise BadImage("not a file")
    target = folder / image.name
    if job.resize is not None:
        if not image.name.lower().endswith((".jpeg", ".jpg")):
            target = folder / f"{image.name}.JPEG"  # its content will be
        return make_resized(job, image, target)
    if image.offset is None and job.link != "copy":
        return make_link(job, image, target)
    return make_copy(job, image, target)


def make_resized(job: Job, image: ImageFile, target: Path) -> bool:
    if target.exists() and not (job.check and problem_with(target)):
        return False
    pixels = resized(decoded(content_of(image)), job.resize)
    buffer = io.BytesIO()  # not straight to the file: PIL does not notice a write that a full disk cuts short
    pixels.save(buffer, "JPEG", quality=job.quality)
    write_whole(job.dst, target, buffer.getvalue())
    return True


def make_copy(job: Job, image: ImageFile, target: Path) -> bool:
    size = image.size if image.offset is not None else os.stat(image.path).st_size
    there = target.is_file() and target.stat().st_size == size
    if there and not job.check:
        return False
    content = content_of(image)
    if job.check:
        decoded_or_removed(content, target)
    if there and target.read_bytes() == content:
        return False
    write_whole(job.dst, target, content)
    return True


def make_link(job: Job, image: ImageFile, target: Path) -> bool:
    if job.check:
        decoded_or_removed(content_of(image), target)
    source = os.path.realpath(image.path)
    if is_link_to(source, target, job.link):
        return False
    temporary = temporary_path(job.dst)
    try:
        (os.symlink if job.link == "symlink" else os.link)(source, temporary)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise UsageError(f"--link hardlink: {source} is on another file system than --dst {job.dst}; symlink or copy "
                         "would work") from error  # fmt: skip
    os.replace(temporary, target)
    return True


def is_link_to(source: str, target: Path, link: str) -> bool:
    if link == "symlink":
        return target.is_symlink() and os.readlink(target) == source
    return target.exists() and not target.is_symlink() and target.samefile(source)


def temporary_path(dst: Path) -> Path:
    return dst / PARTIAL / str(os.getpid())  # a process writes one file at a time


def write_whole(dst: Path, target: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole, also where the process is killed.

    It is not forced to the disk, which would take hours for a million images: after a power cut, use --check.
    """
    temporary = temporary_path(dst)
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, target)


def content_of(image: ImageFile) -> bytes:
    """Raises BadImage."""
    try:
        return image.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def problem_with(path: Path) -> str | None:
    """Why a file is no whole image, None if it is."""
    try:
        decoded(path.read_bytes())
    except (BadImage, OSError) as error:
        return str(error)
    return None


def decoded_or_removed(content: bytes, target: Path) -> None:
    """Raises BadImage, after removing what an earlier run without --check made of it."""
    try:
        decoded(content)
    except BadImage:
        target.unlink(missing_ok=True)
        raise


def decoded(content: bytes) -> Image.Image:
    """Decode every pixel; grey, palette, CMYK and transparent images become RGB by PIL's convert. Raises BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as damaged EXIF, which nobody reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.mode.startswith(("I", "F")):
                raise BadImage(f"more than 8 bits per channel (mode {image.mode})")
            return image.convert("RGB")
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # damaged images raise anything from OSError to SyntaxError
        raise BadImage(f"damaged image ({' '.join(str(error).split()) or type(error).__name__})") from error


def resized(image: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Bilinear with antialiasing: what torchvision's Resize does to the test images, and the authors did to all."""
    if len(size) == 1:
        size = tuple(int(size[0] * side / min(image.size)) for side in image.size)  # rounded as torchvision does
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
