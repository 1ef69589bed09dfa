"""Makes ImageNet-Subset, the 100 classes of seed 1993, from ILSVRC2012.

    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet                          links to the files
    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet --resize 256x256         small copies

SRC and all else is as for generate_imagenet.py; wnids.txt lists the classes in the order they were drawn:
numpy.random.seed(1993), then numpy.random.choice of 100 among the sorted wnids.
"""

import sys
from collections.abc import Sequence

from mnemonics.data.prepare_imagenet import build_parser, prepare
from mnemonics.engine.errors import command


@command("generate_imagenet_subset.py")
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = build_parser(__doc__, "data/seed_1993_subset_100_imagenet/data")
    parser.add_argument("--num_classes", type=int, default=100, metavar="N", help="to draw (%(default)s)")
    options = parser.parse_args(arguments)
    return prepare(options, options.num_classes)


if __name__ == "__main__":
    sys.exit(main())
