"""Summarise finished runs over their seeds, beside the paper's numbers.

    python scripts/summarise.py runs                                  every run in a folder, one row per setting
    python scripts/summarise.py runs/a runs/b --table table1          only the runs that belong to table 1 of the paper
    python scripts/summarise.py results --table figure4 --out curves  also writes curves.md and curves.csv

Exit status: 0 done, 2 a run or the command line must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.engine.errors import command
from mnemonics.engine.files import atomic_write
from mnemonics.reporting.paper import TABLES
from mnemonics.reporting.read import load_all, writing
from mnemonics.reporting.tables import tabulate


@command("summarise.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description="Runs over their seeds, beside the paper's.", allow_abbrev=False)
    add, every = parser.add_argument, "run folder, results file, or a folder that holds several"
    add("runs", nargs="+", type=Path, metavar="RUN", help=every)
    which = "all runs (all), or those that belong to this table or figure of the paper"
    add("--table", default="all", choices=("all", *TABLES), help=which)
    add("--out", metavar="PREFIX", help="also write PREFIX.md and PREFIX.csv")
    options = parser.parse_args(arguments)
    markdown, csv = tabulate(load_all(options.runs), options.table)
    if options.out:
        with writing(options.out):
            atomic_write(Path(f"{options.out}.md"), markdown.encode())
            atomic_write(Path(f"{options.out}.csv"), csv.encode())
    print(markdown, end="")


if __name__ == "__main__":
    sys.exit(main())
