"""Makes ImageNet, all classes, from ILSVRC2012.

    python process_imagenet/generate_imagenet.py --src /data/archives --dst /data/imagenet            extracts archives
    python process_imagenet/generate_imagenet.py --src /data/imagenet --resize 256x256                small copies

SRC holds train/<wnid>/ and val/<wnid>/ (val may be unsorted, the devkit then says what is what), Tiny-ImageNet's
folders, or the archives ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as
downloaded. DST gets train/<wnid>/, val/<wnid>/ and wnids.txt, the sorted classes, with its SHA-256. The same command
continues after an interruption. Files that cannot be used are listed and left out; the exit status is then 1.
What is in an image is looked at with --resize alone.
"""

import sys
from collections.abc import Sequence

from mnemonics.data.prepare_imagenet import build_parser, prepare
from mnemonics.engine.errors import command


@command("generate_imagenet.py")
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return prepare(build_parser(__doc__, "data/imagenet_all/data").parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
