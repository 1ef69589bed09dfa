"""Makes train/<wnid>/ and val/<wnid>/ of links, copies or resized images; the same command continues a killed one."""

import argparse
import hashlib
import io
import os
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mnemonics.data.imagenet_source import ARCHIVES, DEVKIT, ImageFile, Source, find_source
from mnemonics.data.images import FORMATS, rgb
from mnemonics.engine.errors import UsageError, printable

SEED = 1993  # of the draw of classes
QUALITY = 95  # of resized files
KNOWN = {  # SHA-256 of wnids.txt
    "dbf96adcdd5a29fca14c65283bb178686b464d20ddfee751b8a96b7937cbd00c": "the ImageNet-Subset of the paper",
    "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15": "all 1000 classes of ILSVRC2012",
}


def build_parser(about: str, dst: str) -> argparse.ArgumentParser:
    """The flags that both scripts have; `dst` is the default of --dst."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=raw, allow_abbrev=False)
    add, kind = parser.add_argument, parser.add_mutually_exclusive_group()
    what = "folder with train/ and val/, or with the archives as downloaded (%(default)s)"
    add("--src", type=Path, default="data/imagenet", help=what)
    add("--dst", type=Path, default=dst, help="folder to make (%(default)s)")
    what = "256: short side of 256 pixels; 256x256: exactly that, as the authors did; makes JPEG files in RGB"
    kind.add_argument("--resize", type=width_and_height, metavar="S|WxH", help=what)
    what = "how to make files that are not resized (%(default)s); out of archives they are always extracted"
    kind.add_argument("--link", choices=("symlink", "copy"), default="symlink", help=what)
    add("--devkit", type=Path, help=f"{DEVKIT}, to sort an unsorted val (default: the one in SRC)")
    return parser


def width_and_height(text: str) -> tuple[int, ...]:
    """A type for argparse: "256" -> (256,), the short side; "256x192" -> (256, 192), width and height in pixels."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be like 256 or 256x256, each from 1 to 9999")
    return tuple(map(int, text.split("x")))


def prepare(options: argparse.Namespace, num_classes: int | None = None) -> int:
    """Make `options.dst` of `num_classes` classes, drawn at random, or of all, and print what was done.

    Returns the exit status: 1 where some files could not be used, else 0. Raises UsageError and OSError.
    """
    source = find_source(options.src, options.devkit)
    wnids = chosen_classes(source, options.src, num_classes)
    digest = begin(options, wnids)
    known = KNOWN.get(digest, "not the classes of the paper")
    print(f"{len(wnids)} of {len(source.train)} classes, SHA-256 of wnids.txt {digest}: {known}", flush=True)
    counts, problems = Counter(), list(source.strays)
    warnings.simplefilter("ignore")  # such as those about damaged EXIF data
    with ThreadPoolExecutor() as pool:  # other threads run while Pillow decodes and resizes
        for split, wnid in tqdm([(split, wnid) for split in ARCHIVES for wnid in wnids], unit="class", disable=None):
            folder, images = options.dst / split / wnid, getattr(source, split)[wnid]()
            folder.mkdir(parents=True, exist_ok=True)
            reasons = list(pool.map(partial(make_image, options, folder), images))
            bad = [f"/{image.name}: {reason}" for image, reason in zip(images, reasons, strict=True) if reason]
            problems += [f"{split}/{wnid}{line}" for line in (bad if images else [": holds no images"])]
            counts[split] += len(images) - len(bad)
    print(f"{options.dst}: {counts['train']} images in train, {counts['val']} images in val")
    for problem in sorted(problems):
        print(printable(problem), file=sys.stderr)
    if problems:
        print(f"the {len(problems)} above could not be used; all else is done", file=sys.stderr)
    return 1 if problems else 0


def chosen_classes(source: Source, src: Path, num_classes: int | None) -> list[str]:
    """The wnids in the drawn order; all of them, sorted, where no number is asked for. Raises UsageError."""
    wnids = there = sorted(source.train)
    if num_classes is not None:
        if not 1 <= num_classes <= len(there):
            raise UsageError(f"--num_classes {num_classes}: must be 1 to {len(there)}, the classes in --src {src}")
        # what numpy.random.seed and numpy.random.choice give
        wnids = np.random.RandomState(SEED).choice(there, num_classes, replace=False).tolist()
    absent = [wnid for wnid in wnids if wnid not in source.val]
    if absent:
        few = f"{len(absent)} of the {len(wnids)} classes have no validation images, such as {absent[0]}"
        raise UsageError(f"--src {src}: {few}; a source that has them would work")
    return wnids


def begin(options: argparse.Namespace, wnids: list[str]) -> str:
    """Make the folder with wnids.txt, or go on with one of the same classes and settings; for another, UsageError.

    Returns the SHA-256 of wnids.txt, in hexadecimal.
    """
    dst, listed = options.dst, "".join(f"{wnid}\n" for wnid in wnids).encode()
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"--dst {dst}: is not a folder; name another one")
    if dst.resolve().is_relative_to(options.src.resolve()):
        raise UsageError(f"--dst {dst}: lies in --src {options.src}; name a folder outside of it")
    settings = f"--link {options.link}\n"
    if options.resize:
        settings = f"--resize {'x'.join(map(str, options.resize))}\n"
    digest = hashlib.sha256(listed).hexdigest()
    hashed = f"{digest}  wnids.txt\n"
    wanted = {"wnids.txt": listed, "wnids.txt.sha256": hashed.encode(), "settings.txt": settings.encode()}
    there = {name: (dst / name).read_bytes() for name in wanted if (dst / name).is_file()}
    if there != wanted:
        if any((dst / split).exists() for split in ARCHIVES):
            raise UsageError(f"--dst {dst}: made otherwise, see its wnids.txt and settings.txt; name another folder")
        dst.mkdir(parents=True, exist_ok=True)
        for name, content in wanted.items():
            (dst / name).write_bytes(content)
    return digest


def make_image(options: argparse.Namespace, folder: Path, image: ImageFile) -> str | None:
    """Make an image unless it is there. Returns why it cannot be used, or None. Raises OSError of `folder`.

    A file has its name only when it is whole, also where the process is killed. It is not forced to the disk, which
    would take hours for a million images: a power cut can leave empty files, which are made again.
    """
    path = folder / image.name
    if options.resize and path.suffix.lower() not in (".jpeg", ".jpg"):
        path = folder / f"{image.name}.JPEG"
    link = options.link == "symlink" and not options.resize and image.size is None
    if not os.path.isfile(image.path):
        return "not a file"
    if path.is_file() and (path.samefile(image.path) if link else path.stat().st_size):
        return None
    temporary = folder / f".{path.name}.partial"  # hidden: no loader takes it for an image
    if link:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.realpath(image.path))
    else:
        try:
            content = image.read()
            content = resized(content, options.resize) if options.resize else content
        except Image.UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # damaged images raise anything from OSError to SyntaxError
            return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        temporary.write_bytes(content)
    os.replace(temporary, path)
    return None


def resized(content: bytes, size: tuple[int, ...]) -> bytes:
    """The JPEG file of an image file: RGB, bilinear with antialiasing, which is what torchvision's Resize does to test
    images, and the authors did to all. Raises any kind of error for a damaged one."""
    image = rgb(Image.open(io.BytesIO(content), formats=FORMATS))
    if len(size) == 1:
        size = tuple(int(size[0] * side / min(image.size)) for side in image.size)  # rounded as torchvision does
    image = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()  # not straight to the file: PIL does not notice a write that a full disk cuts short
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
