"""Makes ImageNet-Subset, the 100 classes of seed 1993, from ILSVRC2012.

    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet                          links to the files
    python process_imagenet/generate_imagenet_subset.py --src /data/imagenet --resize 256x256         small copies

SRC holds train/<wnid>/ and val/<wnid>/ (val may be unsorted, the devkit then says what is what), or the archives
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as downloaded; Tiny-ImageNet's folders
work too. DST gets train/<wnid>/, val/<wnid>/ and wnids.txt, the classes in the order they were drawn, with its SHA-256.

The same command continues after an interruption: finished files are kept. Files that cannot be used are listed and left
out. Exit status: 0 done, 1 some files could not be used or the disk could not be written, 2 a mistake in the command.
"""

import sys

from mnemonics.data.imagenet.prepare import main

if __name__ == "__main__":
    sys.exit(main("generate_imagenet_subset.py", __doc__, "data/seed_1993_subset_100_imagenet/data", subset=True))
