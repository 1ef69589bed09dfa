"""Image files of any kind, as RGB. They come from outside: whatever is wrong with one is told in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mnemonics.engine.errors import UsageError, described

# Pillow knows many more, of which EPS would start another program, and it looks at the content, not at the name.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
BITS_PER_SAMPLE = 258  # a tag of TIFF


class DataError(Exception):
    """What is wrong with which file or folder of a data set; `usage_errors` adds the flag that led to it."""


@contextlib.contextmanager
def usage_errors(flag: str, what_works: str = "") -> Iterator[None]:
    """Turns what is wrong with files and folders, DataError and OSError, into a UsageError that starts with `flag`."""
    try:
        yield
    except DataError as error:
        raise UsageError(f"{flag}: {error}{what_works}") from error
    except OSError as error:
        raise UsageError(f"{flag}: {described(error)}{what_works}") from error


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
            if min(image.size) < 1:
                raise ValueError("no pixels")
            yield image
    except Exception as error:  # what Pillow's decoders raise for damaged files is no closed list
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image ({reason}); mend or remove this file") from error


def rgb(image: Image.Image) -> Image.Image:
    """Without transparency; of 12 or 16 bits the upper 8, as Pillow does it for colours of 16 bits."""
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


def check_strip(image: Image.Image, side: int, path: Path) -> None:
    """Raises DataError for an image so long and thin that it would fill the memory when its short side becomes `side`
    pixels."""
    width, height = image.size
    if side**2 * max(width, height) / min(width, height) > 2 * Image.MAX_IMAGE_PIXELS:  # where Pillow refuses files
        raise DataError(f"{path} cannot be used as an image ({width}x{height} pixels: too long and thin); remove it")
