"""Compare finished (or running) runs: one table, one plot, and where the pictures of each run are.

python scripts/compare_runs.py runs/a runs/b [--out accuracy_comparison.png]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.reporting.figures import plot_accuracy
from mnemonics.reporting.read import exemplar_pictures, load_results, run_names
from mnemonics.reporting.text import comparison_table


def pictures(run_dir: Path) -> list[Path]:
    """The pictures that a run wrote, those of the exemplars in the order of their phases."""
    return [*exemplar_pictures(run_dir).values(), *(path for path in [run_dir / "accuracy.png"] if path.is_file())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the plot, list the pictures. Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Compare runs by their results.json.", allow_abbrev=False)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("accuracy_comparison.png"), help="the plot to write (accuracy_comparison.png)"
    )
    options = parser.parse_args(arguments)
    try:
        loaded = [load_results(run_dir) for run_dir in options.run_dirs]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    runs = list(zip(run_names(options.run_dirs), loaded, strict=True))
    print(comparison_table(runs))
    try:
        plot_accuracy(runs, options.out)
    except OSError as error:
        print(f"--out {options.out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print("\npictures:")
    for path in [picture for run_dir in options.run_dirs for picture in pictures(run_dir)] + [options.out]:
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
