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
from typing import Any

from mnemonics.engine.files import atomic_write
from mnemonics.reporting.paper import TABLES, load_paper
from mnemonics.reporting.read import read_results, reading, results_files
from mnemonics.reporting.tables import curve_rows, finished, tabulate


def load(path: Path, paper: dict[str, Any]) -> dict[str, Any]:
    """The results of a run. Raises ValueError (one line naming the path) where unusable."""
    results = read_results(path)
    with reading(path):
        if finished(results):
            tabulate([("", results)], paper, "all"), curve_rows([results], paper)  # they read all that is needed later
    return results


def write(prefix: str, texts: dict[str, str]) -> None:
    """Write PREFIX.md and PREFIX.csv. Raises ValueError (one line) where that is not possible."""
    for ending, text in texts.items():
        try:
            atomic_write(Path(f"{prefix}.{ending}"), text.encode())
        except OSError as error:
            raise ValueError(f"--out {prefix}: {prefix}.{ending} cannot be written ({error.strerror})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown. Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description="Runs over their seeds, beside the paper's numbers.", allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, results file, or a folder that holds several"
    )
    parser.add_argument(
        "--table",
        default="all",
        choices=("all", *TABLES),
        help="all runs (all), or those that belong to this table or figure of the paper",
    )
    parser.add_argument("--out", metavar="PREFIX", help="also write PREFIX.md and PREFIX.csv")
    options = parser.parse_args(arguments)
    try:
        paper = load_paper()
        paths = {path.resolve(): path for run in options.runs for path in results_files(run)}  # each file once
        text, table = tabulate([(str(path), load(path, paper)) for path in paths.values()], paper, options.table)
        if options.out:
            write(options.out, {"md": text, "csv": table})
    except ValueError as error:
        print(f"summarise.py: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
