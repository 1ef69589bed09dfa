"""Run one class-incremental learning experiment.

    python main.py --dataset cifar100 --nb_phases 5          the paper's settings
    python main.py --dataset digits --nb_phases 5 --epochs 20 --network resnet8
    python main.py --help                                    every flag

    torchrun --nproc_per_node=2 main.py ...                  on several GPUs

Exit status: 0 done, 1 the run failed, 2 the command line or the data must be changed.
"""

import sys
from pathlib import Path

from mnemonics import distributed
from mnemonics.config import UsageError, parse_args, repetitions
from mnemonics.experiment import run
from mnemonics.report import results_table
from mnemonics.runtime import NonFiniteLossError
from mnemonics.tables import over_seeds


def main() -> int:
    try:
        with distributed.joined():
            config = distributed.main_first(parse_args)
            show([run(repetition) for repetition in repetitions(config)])
    except UsageError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    return 0


def show(finished: list[tuple[dict, Path]]) -> None:
    """Print the tables of finished runs: (results.json, run folder) each."""
    for results, folder in finished:
        print(results_table(results))
        print(f"everything measured: {folder / 'results.json'}; pictures: {folder / '*.png'}")
    if len(finished) > 1:
        print(over_seeds([results for results, _ in finished]))


if __name__ == "__main__":
    sys.exit(main())
