"""Image files of any kind, as RGB. They come from outside: whatever is wrong with one is told in one line."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mnemonics.engine.errors import UsageError, described

# Pillow knows many more, of which EPS would start another program, and it looks at the content, not at the name.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
BITS_PER_SAMPLE = 258  # a tag of TIFF
LOOKED_AT = 10_000  # files whose headers are read before a run: all of most data sets
READERS = 16  # threads: on a network disk, files keep each other from waiting


class DataError(Exception):
    """What is wrong with which file or folder of a data set; `usage_errors` adds the flag that led to it."""


@contextlib.contextmanager
def usage_errors(flag: str, what_works: str = "") -> Iterator[None]:
    """Turns what is wrong with files and folders, DataError and OSError, into a UsageError that starts with `flag`."""
    try:
        yield
    except (DataError, OSError) as error:
        reason = described(error) if isinstance(error, OSError) else error
        raise UsageError(f"{flag}: {reason}{what_works}") from error


def spread(count: int, most: int) -> np.ndarray:
    """Which of `count` things to look at where `most` are enough: int64, all or evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


class Header(NamedTuple):
    """What a file says of its image before it is decoded."""

    path: Path
    size: tuple[int, int]  # width and height in pixels
    turned: bool  # whether its EXIF orientation makes it lie otherwise than it is stored


def headers(root: Path, names: np.ndarray) -> list[Header]:
    """Of up to 10,000 of the files `names` (bytes [n], paths below the root), evenly spaced: 0.1 ms each, more on a
    network disk. Raises DataError for one that is no image, or has more pixels than Pillow decodes."""
    paths = [root / os.fsdecode(names[i]) for i in spread(len(names), LOOKED_AT)]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(header, paths))


def header(path: Path) -> Header:
    with opened(path) as image:
        orientation = None
        with contextlib.suppress(Exception):  # damaged EXIF data says nothing
            exif = Image.Image.getexif(image)  # PngImageFile's method would decode the image
            orientation = exif.get(ExifTags.Base.Orientation)
        return Header(path, image.size, orientation in range(2, 9))


def read_rgb(path: Path) -> Image.Image:
    """Decode a file to RGB, 8 bits per channel. Raises DataError."""
    with opened(path) as image:
        return rgb(image)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file, not yet decoded. What goes wrong with it inside is a DataError too."""
    try:
        Image.preinit()  # without it, Pillow imports all its decoders to look for the second format
        with Image.open(path, formats=FORMATS) as image:
            image.filename = ""  # else Pillow maps some TIFF files into memory, and scrambles those that are turned
            if min(image.size) < 1:
                raise ValueError("no pixels")
            yield image
    except Exception as error:  # what Pillow's decoders raise for damaged files is no closed list
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image ({reason}); mend or remove this file") from error


def rgb(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; without transparency; of 12 or 16 bits the upper 8, as Pillow does it for
    colours of 16 bits."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data says nothing
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("pixels with fractions, whose range is unknown")
    if image.mode.startswith("I"):  # Pillow's own conversion would make everything above 255 white
        values, (bits, *_) = np.asarray(image), getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        if bits not in (12, 16) or values.min() < 0 or values.max() >= 2**bits:
            raise ValueError(f"pixels of {bits} bits, whose range is unknown")
        return Image.fromarray((values >> bits - 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning
    return image.convert("RGB")


def check_strip(size: tuple[int, int], side: int, path: Path) -> None:
    """Raises DataError for an image of (width, height) `size` so long and thin that it would fill the memory when its
    short side becomes `side` pixels."""
    width, height = size
    if side**2 * max(width, height) / min(width, height) > 2 * Image.MAX_IMAGE_PIXELS:  # where Pillow refuses files
        raise DataError(f"{path} cannot be used as an image ({width}x{height} pixels: too long and thin); remove it")
