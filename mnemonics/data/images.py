"""Image files of any kind, as RGB. They come from outside: whatever is wrong with one is told in one line."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Pillow knows many more, of which EPS would start another program, and it looks at the content, not at the name.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
BITS_PER_SAMPLE = 258  # a tag of TIFF


class ImageError(Exception):
    """Which image file cannot be used, and why, in one line."""


def read_rgb(path: Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode a file to RGB, 8 bits per channel. Raises ImageError."""
    with opened(path, formats) as image:
        return rgb(image)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, without decoding. Raises ImageError."""
    with opened(path, FORMATS) as image:
        return image.size


@contextlib.contextmanager
def opened(path: Path, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The image of a file, not yet decoded. What goes wrong with it inside is an ImageError too."""
    try:
        Image.preinit()  # without it, Pillow imports all its decoders to look for the second format
        with Image.open(path, formats=formats) as image:
            if min(image.size) < 1:
                raise ValueError("no pixels")
            yield image
    except Exception as error:  # what Pillow's decoders raise for damaged files is no closed list
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path} cannot be read as an image ({reason_for(path) or reason})") from error


def reason_for(path: Path) -> str | None:
    """What Pillow does not tell about a file that it cannot read."""
    with contextlib.suppress(OSError):
        return "the file is empty" if os.path.getsize(path) == 0 else None
    return None


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
    """Raises ImageError for an image so long and thin that it would fill the memory when its short side becomes `side`
    pixels."""
    width, height = image.size
    if side**2 * max(width, height) / min(width, height) > 2 * Image.MAX_IMAGE_PIXELS:  # where Pillow refuses files
        raise ImageError(f"{path} cannot be used as an image ({width}x{height} pixels: too long and thin)")
