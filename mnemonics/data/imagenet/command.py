"""The command line of both scripts."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mnemonics.engine.errors import UsageError

LINKS = ("symlink", "hardlink", "copy")
QUALITY = 95
LARGEST = 65_500  # pixels; a JPEG file cannot have more


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclass(frozen=True)
class Options:
    """What the user asked for; `num_classes` None means all, `link` None that the flag was not given."""

    src: Path
    dst: Path
    num_classes: int | None
    seed: int
    resize: tuple[int, ...] | None
    quality: int
    link: str | None
    jobs: int
    devkit: Path | None
    check: bool


def parse_args(script: str, about: str, dst: str, subset: bool, arguments: Sequence[str] | None) -> Options:
    """`dst` is the default of --dst; --num_classes and --seed are there with `subset` only. Raises UsageError."""
    parser = Parser(
        prog=script, description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--src", type=Path, default=Path("data/imagenet"), help="folder with train/ and val/, or with the archives as "
        "downloaded (%(default)s)")  # fmt: skip
    add("--dst", type=Path, default=Path(dst), help="folder to make (%(default)s)")
    if subset:
        add("--num_classes", type=int, default=100, help="how many classes to draw (%(default)s)")
        add("--seed", type=int, default=1993, help="seed of the draw; 1993 is the paper's (%(default)s)")
    add("--resize", metavar="S|WxH", help="256: the shorter side becomes 256 pixels; 256x256: exactly that, as the "
        "authors did. Such files are JPEG and RGB (default: the files as they are)")  # fmt: skip
    add("--quality", type=int, help=f"JPEG quality of resized files, 1 to 100 ({QUALITY})")
    add("--link", choices=LINKS, help="how to make files that are not resized (symlink); out of archives they are "
        "always extracted")  # fmt: skip
    add("--check", action="store_true", help="decode every image, also those that are only linked or copied, or are "
        "there already; without it, only images that are resized are decoded")  # fmt: skip
    add("--devkit", type=Path, help="ILSVRC2012_devkit_t12.tar.gz or the folder unpacked from it, to sort an unsorted "
        "val (default: the one in SRC, if it is needed)")  # fmt: skip
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    given = vars(parser.parse_args(arguments))
    given = {name: value.expanduser() if isinstance(value, Path) else value for name, value in given.items()}
    return checked({"num_classes": None, "seed": 0} | given)


def checked(given: dict) -> Options:
    """Raises UsageError for values that make no sense."""
    for name, least, most in (
        ("num_classes", 1, 10**6),
        ("seed", 0, 2**32 - 1),
        ("quality", 1, 100),
        ("jobs", 1, 4096),
    ):
        value = given[name]
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} {value}: must be from {least} to {most}")
    resize = parse_resize(given["resize"])
    if resize is None and given["quality"] is not None:
        raise UsageError(f"--quality {given['quality']}: does nothing without --resize; leave it out")
    if resize is not None and given["link"] is not None:
        raise UsageError(f"--link {given['link']}: resized images are new files; leave out --link or --resize")
    return Options(**given | {"resize": resize, "quality": given["quality"] or QUALITY})


def parse_resize(text: str | None) -> tuple[int, ...] | None:
    """Raises UsageError."""
    if text is None:
        return None
    numbers = [int(number) for number in text.split("x")] if re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})?", text) else [0]
    if not all(1 <= number <= LARGEST for number in numbers):
        raise UsageError(f"--resize {text}: must be like 256 or 256x256, each from 1 to {LARGEST}")
    return tuple(numbers)
