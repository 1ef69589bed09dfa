"""Run one class-incremental learning experiment.

    python main.py --dataset cifar100 --nb_phases 5          the paper's settings
    python main.py --dataset digits --nb_phases 5 --epochs 20 --network resnet8
    python main.py --help                                    every flag

    torchrun --nproc_per_node=2 main.py ...                  on several GPUs

Exit status: 0 done, 1 the run failed, 2 the command line or the data must be changed, 143 or 130 stopped by SIGTERM or
Ctrl-C after a checkpoint was written. The same command continues a run that was interrupted in any way.
"""

import signal
import sys
from pathlib import Path

from mnemonics.algorithm import run
from mnemonics.config.checks import UsageError
from mnemonics.config.fields import parse_args, repetitions
from mnemonics.engine import distributed
from mnemonics.engine.errors import RunError
from mnemonics.engine.interruption import Interrupted
from mnemonics.reporting.tables import over_seeds
from mnemonics.reporting.text import results_table


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of classes may be in any language, terminals not
    try:
        with distributed.joined():
            config = distributed.main_first(parse_args)
            show([run(repetition) for repetition in repetitions(config)])
    except UsageError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"main.py: {described(error)}; what was saved before is whole, the same command continues", file=sys.stderr
        )
        return 1
    except Interrupted as interruption:
        print(f"main.py: {interruption}: stopped; the same command continues", file=sys.stderr)
        return interruption.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def described(error: OSError) -> str:
    """In one line: which file, and what about it."""
    reason = error.strerror or " ".join(str(error).split())
    return f"{error.filename}: {reason}" if error.filename else reason


def show(finished: list[tuple[dict, Path]]) -> None:
    """Print the tables of finished runs: (results.json, run folder) each."""
    for results, folder in finished:
        print(results_table(results))
        print(f"everything measured: {folder / 'results.json'}; as a page: {folder / 'report.html'}")
    if len(finished) > 1:
        print(over_seeds([results for results, _ in finished]))


if __name__ == "__main__":
    sys.exit(main())
