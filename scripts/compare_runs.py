"""Compare finished (or running) runs: one table, one plot, and where the pictures of each run are.

    python scripts/compare_runs.py runs/a runs/b [--out accuracy_comparison.png]

Exit status: 0 done, 2 a run or the command line must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.engine.errors import command
from mnemonics.reporting.figures import plot_accuracy
from mnemonics.reporting.read import exemplar_pictures, load_results, run_names, writing
from mnemonics.reporting.text import comparison_table


@command("compare_runs.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write the plot, list the pictures."""
    parser = argparse.ArgumentParser(description="Compare runs by their results.json.", allow_abbrev=False)
    add, out = parser.add_argument, Path("accuracy_comparison.png")
    add("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    add("--out", type=Path, default=out, help="the plot to write (%(default)s)")
    options = parser.parse_args(arguments)
    loaded = [load_results(run_dir) for run_dir in options.run_dirs]
    runs = list(zip(run_names(options.run_dirs), loaded, strict=True))
    print(comparison_table(runs))
    with writing(options.out):
        plot_accuracy(runs, options.out)
    print("\npictures:")
    for folder in options.run_dirs:
        for path in [*exemplar_pictures(folder).values(), *folder.glob("accuracy.png")]:
            print(f"  {path}")
    print(f"  {options.out}")


if __name__ == "__main__":
    sys.exit(main())
