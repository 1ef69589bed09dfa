"""Makes ImageNet-Subset, the 100 classes of seed 1993, from ILSVRC2012.

    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet                          links to the files
    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet --resize 256x256         small copies

SRC and all else is as for generate_imagenet.py; wnids.txt lists the classes in the order they were drawn:
numpy.random.seed(1993), then numpy.random.choice of 100 among the sorted wnids.
"""

import sys
from collections.abc import Sequence

from mnemonics.data.prepare_imagenet import build_parser, prepare, whole_number
from mnemonics.engine.errors import command


@command("generate_imagenet_subset.py")
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = build_parser(__doc__, "data/seed_1993_subset_100_imagenet/data")
    add = parser.add_argument
    add("--num_classes", type=whole_number(1, 10**6), default=100, metavar="N", help="to draw (%(default)s)")
    add("--seed", type=whole_number(0, 2**32 - 1), default=1993, metavar="N", help="of the draw (%(default)s)")
    options = parser.parse_args(arguments)
    return prepare(options, options.num_classes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
