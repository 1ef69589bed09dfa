"""`python -m mnemonics`, the same as main.py: an experiment or, if its name comes first, one of COMMANDS."""

import os
import sys
from collections.abc import Sequence

# Threads that wait for others sleep: spinning, they starve each other beside a busy process (numbers: docs/speed.md).
# OpenMP reads this when torch is imported.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "0"

from mnemonics import algorithm
from mnemonics.config.command_line import repetitions
from mnemonics.engine import distributed
from mnemonics.engine.errors import command
from mnemonics.experiment.state import parse_args
from mnemonics.reporting import export, predict
from mnemonics.reporting.tables import over_seeds
from mnemonics.reporting.text import results_table

COMMANDS = {"predict": predict.main, "export": export.main}


@command("main.py")
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run what the command line asks for and print the tables: of each run and, of several, over their seeds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    with distributed.joined():
        config = distributed.main_first(lambda: parse_args(arguments))
        finished = [algorithm.run(repetition) for repetition in repetitions(config)]
        for results, folder in finished:
            print(results_table(results))
            print(f"everything measured: {folder / 'results.json'}; as a page: {folder / 'report.html'}")
        if len(finished) > 1:
            print(over_seeds([results for results, _ in finished]))


if __name__ == "__main__":
    sys.exit(main())
