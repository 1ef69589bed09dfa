"""A page on a run, or on several beside each other: tables, curves, exemplars, time, settings, in a single HTML file.

    python scripts/report.py runs/a                               writes runs/a/report.html, as main.py does at the end
    python scripts/report.py runs/a runs/b --out comparison.html  compares runs

Exit status: 0 done, 2 a run or the command line must be changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.reporting.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page. Returns the exit status: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="A page on a run, or on several beside each other.", allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, finished or not, or the results.json of a run"
    )
    parser.add_argument(
        "--out", type=Path, help="the page to write (report.html in the run folder; of several runs in this one)"
    )
    options = parser.parse_args(arguments)
    alone = options.runs[0] if len(options.runs) == 1 and options.runs[0].is_dir() else Path()
    out = options.out or alone / "report.html"
    try:
        write_report(options.runs, out)
    except ValueError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: --out {out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 2**10:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
