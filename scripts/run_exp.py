"""Run many experiments: those of a table of the paper, or of a file; several at a time with --jobs.

    python scripts/run_exp.py --table 1 --jobs 2                table 1 of the paper on CIFAR-100: what runs by default
    python scripts/run_exp.py --table 1 --dataset imagenet_sub  the same on ImageNet-Subset; also 2, figure4 and all
    python scripts/run_exp.py --commands FILE --seeds 1 2 3     lines `python main.py --flag ...`, each with three seeds

Flags that are not listed here go to every main.py command, after its own, so that they override. Each run has its
folder below --runs_dir and its output in <folder>.log; relative paths are from the repository root. Stopped or killed,
the same command continues: finished runs are skipped. Exit status: 0 done or out of time, 1 a run failed, 2 a mistake
in the command line or in a command, 143 or 130 stopped by SIGTERM or Ctrl-C.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.baselines import BASELINES
from mnemonics.config.command_line import check_setting
from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import run_name, settled
from mnemonics.data.identity import identity_of
from mnemonics.data.images import usage_errors
from mnemonics.data.sources import NUM_CLASSES, load_source
from mnemonics.engine.errors import RunError, UsageError, command
from mnemonics.experiment.paper_runs import RUNS, paper_runs
from mnemonics.experiment.state import parse_args
from mnemonics.experiment.sweep import Run, Sweep
from mnemonics.reporting.text import is_finished

ROOT = Path(__file__).resolve().parents[1]
OF_DATA = ("dataset", "data_dir", "image_size", "val_share", "max_images_per_class")  # settings that choose images


def parse_command_line(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns (the options of this script, the flags for main.py). Raises UsageError."""
    parser = argparse.ArgumentParser(
        usage="run_exp.py [options] [flags for every main.py command]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--table",
        type=lambda name: f"table{name}" if name in ("1", "2") else name,
        choices=tuple(RUNS),
        metavar="{1,2,figure4,all}",
        help="the runs of this part of the paper (1), and the summary beside it",
    )
    add("--commands", type=Path, metavar="FILE", help="run these instead: lines `python main.py --flag ...`")
    add("--seeds", nargs="+", type=int, default=[], metavar="S", help="run each command once per --random_seed S")
    add("--runs_dir", type=Path, default=Path("runs/exp"), help="folder for all that is written (%(default)s)")
    add("--jobs", type=int, default=1, metavar="J", help="runs at a time (%(default)s)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="stop, to be continued, after M minutes")
    options, flags = parser.parse_known_args(arguments)
    check_setting("jobs", options.jobs)
    check_setting("runs_dir", str(options.runs_dir))
    if not options.minutes >= 0:
        raise UsageError(f"--minutes {options.minutes}: must be at least 0")
    return options, flags


def read_commands(file: Path) -> list[list[str]]:
    """The flags in each line `python main.py ...`. Raises UsageError for any other line, or if there is no command."""
    try:
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, a zero byte in the name, an open quotation
        raise UsageError(f"--commands {file}: cannot be read ({error})") from None
    commands = [words for words in lines if words]
    for words in commands:
        if not Path(words[0]).name.startswith("python") or words[1:2] != ["main.py"]:
            raise UsageError(f"{shlex.join(words)}: not of the form `python main.py --flag ...`")
    if not commands:
        raise UsageError(f"--commands {file}: lines `python main.py --flag ...` are expected")
    return [words[2:] for words in commands]


def parse_main(arguments: Sequence[str]) -> ExperimentConfig:
    """`parse_args` of main.py, but every mistake is one line instead of pages of usage. Raises UsageError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = parse_args(arguments)
    except SystemExit as error:
        last = said.getvalue().strip().splitlines()[-1].removeprefix("main.py: error: ")
        raise UsageError(last if error.code else "--help runs no experiment") from None
    if config.out is not None:
        raise UsageError(f"--out {config.out}: leave it out, run folders are named here; --runs_dir says where")
    if config.extend is not None:
        raise UsageError(f"--extend {config.extend}: leave it out, it takes its settings from another run")
    if config.nb_runs > 1:
        raise UsageError(f"--nb_runs {config.nb_runs}: leave it out; --seeds runs each command with several seeds")
    return config


@functools.cache
def looked_at(config: ExperimentConfig) -> tuple[int, int | None, str | None]:
    """Classes; height and width in pixels and fingerprint of data that are not known before. Raises UsageError."""
    if config.dataset in NUM_CLASSES:
        return NUM_CLASSES[config.dataset], config.image_size, None
    source = load_source(config)
    return source.num_classes, source.image_size, identity_of(source)["fingerprint"]


def make_run(arguments: Sequence[str], runs_dir: Path) -> Run:
    """The run of one command, with its folder and the folder of shared phase-0 models. Raises UsageError."""
    user = parse_main(arguments)
    of_data = {name: getattr(user, name) for name in OF_DATA}
    classes, size, fingerprint = looked_at(ExperimentConfig(**of_data))
    named, config = settled(user, classes, size, BASELINES[user.baseline].is_bound())
    folder = runs_dir / run_name(named)
    shared = [] if user.phase0_dir else ["--phase0_dir", str(runs_dir / "phase0")]
    return Run(folder, (*arguments, *shared, "--out", str(folder)), config, fingerprint)


def make_runs(commands: Sequence[list[str]], flags: list[str], seeds: Sequence[int], runs_dir: Path) -> list[Run]:
    """All runs, equal ones once: every command with the first seed, then with the second, and so on.

    Raises:
        UsageError: for a mistake in any of the commands, or if two different runs would share a folder.
    """
    runs: dict[Path, Run] = {}
    for seed_flags, words in itertools.product([["--random_seed", str(s)] for s in seeds] or [[]], commands):
        arguments = [*words, *flags, *seed_flags]
        try:
            run = make_run(arguments, runs_dir)
            if run.config != runs.setdefault(run.folder, run).config:
                raise UsageError("another command, for other data or another device, has the same run folder")
        except UsageError as error:
            raise UsageError(f"{shlex.join(['python', 'main.py', *arguments])}: {error}") from None
    return list(runs.values())


def summarise(runs: Sequence[Run], runs_dir: Path, table: str) -> None:
    """Print and write the summary of all finished runs, if there are any. Raises RunError."""
    folders = [str(run.folder) for run in runs if (results := run.results()) and is_finished(results)]
    words = [sys.executable, "scripts/summarise.py", *folders, "--out", str(runs_dir / "summary"), "--table", table]
    if folders and subprocess.run(words).returncode:
        raise RunError(f"the summary failed: {shlex.join(words)}")


@command("run_exp.py")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments that the command line asks for, and summarise them. Returns the exit status."""
    options, flags = parse_command_line(arguments)
    commands = read_commands(options.commands) if options.commands else paper_runs(options.table or "table1")
    os.chdir(ROOT)  # where main.py runs
    runs = make_runs(commands, flags, options.seeds, options.runs_dir)
    with usage_errors("--runs_dir"):
        options.runs_dir.mkdir(parents=True, exist_ok=True)
    status = Sweep(runs, options.jobs, 60 * options.minutes).go()
    summarise(runs, options.runs_dir, options.table or "all")
    return status


if __name__ == "__main__":
    sys.exit(main())
