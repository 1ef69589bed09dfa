"""A page on a run, or on several beside each other: tables, curves, exemplars, settings, in one HTML file. Prints the
table that compares them.

    python scripts/report.py runs/a                               writes runs/a/report.html, as main.py does at the end
    python scripts/report.py runs/a runs/b --out comparison.html  compares runs

Exit status: 0 done, 2 a run or the command line must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.engine.errors import command
from mnemonics.reporting.page import write_report
from mnemonics.reporting.read import load_results, run_names, writing
from mnemonics.reporting.text import comparison_table


@command("report.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the page."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__.partition(":")[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder, finished or not, or the results.json of a run")
    add("--out", type=Path, help="the page to write (report.html in the run folder; of several runs in this one)")
    options = parser.parse_args(arguments)
    options.runs = [run.parent if run.name == "results.json" else run for run in options.runs]  # with what is beside it
    alone = options.runs[0] if len(options.runs) == 1 and options.runs[0].is_dir() else Path()
    out = options.out or alone / "report.html"
    table = comparison_table(list(zip(run_names(options.runs), map(load_results, options.runs), strict=True)))
    with writing(out):
        write_report(options.runs, out)
    print(f"{table}\n\n{out}: {out.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
