"""Turns checkpoints of the authors' code into this program's format, which loads safely and needs no folder name.

    python eval/convert_legacy.py checkpoints/cifar100_nfg50_ncls2_nproto20_mtl_exp01 runs/theirs
    python eval/convert_legacy.py some_model.pth phase_0.pt --dataset cifar100 --nb_cl_fg 50 --nb_cl 2

IN is a folder of theirs or one file, of any name; OUT is made: a folder with phase_<i>.pt, or a file. The results have
no exemplars, since the originals have none. Exit status: 0 done, 1 the disk failed, 2 something must be changed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError, command
from mnemonics.experiment.stored import protocol_of
from mnemonics.legacy.authors import DATASETS, EXAMPLE, authors_target, converted


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="convert_legacy.py", description="Convert checkpoints of the authors' code.", allow_abbrev=False
    )
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a folder of the authors' code, or one model in it")
    add("out", type=Path, metavar="OUT", help="the folder or file to make; nothing may be there yet")
    add("--dataset", choices=DATASETS, help=f"for folders that are not named like {EXAMPLE}")
    add("--nb_cl_fg", type=int, help="classes in phase 0, for such folders")
    add("--nb_cl", type=int, help="classes in each later phase, for such folders")
    add("--order_seed", type=int, help="make the class order from this seed (the stored order, or 1993)")
    return parser.parse_args(arguments)


@command("convert_legacy.py")
def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_args(arguments)
    source, out = options.source, options.out
    if os.path.exists(out):
        raise UsageError(f"{out}: is there already; name a folder or file that is not")
    target = authors_target(source, options)
    protocol, lines = protocol_of(target, DATASETS[target.config.dataset]), list(target.notices)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); name another place") from error
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as scratch:  # OUT appears whole, or not at all
        made = Path(scratch, "made")
        made.mkdir()
        for file in target.files.values():
            state = converted(file, target.config, protocol)
            path = made / f"phase_{state['phase']}.pt"
            if path.exists():
                raise UsageError(f"{file}: for as many classes as another network of this folder")
            checkpoint.save(path, state)
            lines.append(f"{file} -> phase {state['phase']}")
        (made if source.is_dir() else path).rename(out)
    print(*lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
