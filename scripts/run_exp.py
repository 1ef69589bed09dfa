"""Run many experiments: those of a file, of a grid of flags, or the standard set; several at a time with --jobs.

    python scripts/run_exp.py                                  cifar100, LUCIR without and with mnemonics, N = 5, 10, 25
    python scripts/run_exp.py commands.txt --jobs 2            lines `python main.py --flag ...`; - is standard input
    python scripts/run_exp.py --grid "--baseline lucir icarl" "--nb_phases 5 10" --seeds 1 2 3 --epochs 20

Flags that are not listed here go to every main.py command, after its own, so that they override. Each run has its
folder below --runs_dir and its output in <folder>.log; relative paths are from the repository root. Stopped or killed,
the same command continues: finished runs are skipped. Exit status: 0 done or out of time, 1 a run failed, 2 a mistake
in the command line or in a command.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mnemonics.config.command_line import check_setting
from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import run_name, settled
from mnemonics.data.sources import load_source
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.state import parse_args
from mnemonics.experiment.sweep import Run, Sweep

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"cifar100": 100, "digits": 10, "imagenet_sub": 100, "imagenet": 1000}
STANDARD = [
    f"--dataset cifar100 --nb_phases {phases} --baseline lucir --method {method}".split()
    for phases in (5, 10, 25)
    for method in ("baseline", "mnemonics")
]
LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and ".log" and the like are added


def parse_command_line(arguments: Sequence[str]) -> tuple[str | None, argparse.Namespace, list[str]]:
    """Returns (FILE or None, the options of this script, the flags for main.py).

    FILE is looked for in the first place only: later on, it could not be told from the value of a flag for main.py.
    """
    parser = argparse.ArgumentParser(
        usage="run_exp.py [FILE] [options] [flags for every main.py command]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--grid", nargs="+", metavar='"--flag VALUE ..."', help="run the product of these flags' values")
    add("--seeds", nargs="+", type=int, default=[], metavar="S", help="run each command once per --random_seed S")
    add("--runs_dir", type=Path, default=Path("runs/exp"), help="folder for all that is written (%(default)s)")
    add("--jobs", type=int, default=1, metavar="J", help="runs at a time (%(default)s)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="stop, to be continued, after M minutes")
    add("--table", choices=("table1", "table2", "figure4"), help="summary beside this part of the paper")
    named = bool(arguments) and (arguments[0] == "-" or not arguments[0].startswith("-"))
    options, flags = parser.parse_known_args(arguments[1:] if named else arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: must be at least 1")
    if not options.minutes >= 0:
        parser.error(f"--minutes {options.minutes}: must be at least 0")
    if flags and not flags[0].startswith("-"):
        parser.error(f"{flags[0]}: belongs to no flag; a FILE must come first")
    if named and options.grid:
        parser.error(f"{arguments[0]} and --grid: give one of the two")
    return arguments[0] if named else None, options, flags


def read_commands(text: str) -> list[list[str]]:
    """The arguments of main.py in each line `python main.py ...`; empty lines and comments (#) are skipped.

    Raises:
        UsageError: for any other line, or if there is no command.
    """
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"{line.strip()}: {error}") from None
        if words and (not Path(words[0]).name.startswith("python") or words[1:2] != ["main.py"]):
            raise UsageError(f"{line.strip()}: not of the form `python main.py --flag ...`")
        commands += [words[2:]] if words else []
    if not commands:
        raise UsageError("no command to run: lines `python main.py --flag ...` are expected")
    return commands


def grid_commands(axes: Sequence[str]) -> list[list[str]]:
    """The product of strings such as "--nb_phases 5 10"; the last one varies fastest. Raises UsageError."""
    choices = []
    for axis in axes:
        try:
            flag, *values = shlex.split(axis) or [""]
        except ValueError as error:
            raise UsageError(f'--grid "{axis}": {error}') from None
        if not flag.startswith("--") or not values:
            raise UsageError(f'--grid "{axis}": must be a flag followed by its values, such as "--nb_phases 5 10"')
        choices.append([[flag, value] for value in values])
    return [list(itertools.chain(*words)) for words in itertools.product(*choices)]


def chosen_commands(file: str | None, grid: Sequence[str] | None) -> list[list[str]]:
    """The arguments of each main.py command. Raises UsageError."""
    if grid:
        return grid_commands(grid)
    if file is None:
        return STANDARD
    try:
        return read_commands(sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name, or no UTF-8 in the file
        raise UsageError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None


def parse_main(arguments: Sequence[str]) -> ExperimentConfig:
    """`parse_args` whose every mistake is a UsageError, naming the command, instead of pages of usage."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = parse_args(arguments)
        if config.out is not None:
            raise UsageError(f"--out {config.out}: leave it out, run folders are named here; --runs_dir says where")
        return config
    except (SystemExit, UsageError) as error:
        reason = str(error)
        if isinstance(error, SystemExit):
            reason = said.getvalue().strip().splitlines()[-1] if error.code else "--help runs no experiment"
        command = shlex.join(["python", "main.py", *arguments])
        raise UsageError(f"{command}: {reason.removeprefix('main.py: error: ')}") from None


def with_seeds(arguments: list[str], seeds: Sequence[int]) -> list[list[str]]:
    """One command per seed: those given, or those that --nb_runs stands for, so that they can run at the same time."""
    config = parse_main(arguments)
    if config.nb_runs == 1:
        return [[*arguments, "--random_seed", str(seed)] for seed in seeds] or [arguments]
    if seeds:
        raise UsageError(f"--nb_runs {config.nb_runs} and --seeds: give one of the two")
    runs = range(config.random_seed, config.random_seed + config.nb_runs)
    return [[*arguments, "--nb_runs", "1", "--random_seed", str(seed)] for seed in runs]


def classes_and_size(user: ExperimentConfig) -> tuple[int, int | None]:
    """Number of classes, and height and width in pixels where --dataset folder has any. Raises UsageError."""
    if user.dataset in CLASSES:
        return CLASSES[user.dataset], user.image_size
    return found_in_folder(user.data_dir, user.image_size)


@functools.cache
def found_in_folder(data_dir: str, image_size: int | None) -> tuple[int, int]:
    """Classes, and height and width in pixels, of `--dataset folder`. Raises UsageError."""
    source = load_source(ExperimentConfig(dataset="folder", data_dir=data_dir, image_size=image_size))
    return source.num_classes, source.image_size


def make_run(arguments: list[str], runs_dir: Path, number: int) -> Run:
    """The run of one command, with its folder and the folder of shared phase-0 models. Raises UsageError."""
    user = parse_main(arguments)
    try:
        named, config = settled(user, *classes_and_size(user))
    except UsageError as error:
        raise UsageError(f"{shlex.join(['python', 'main.py', *arguments])}: {error}") from None
    name = run_name(named)
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 9] + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    folder = runs_dir / name
    shared = [] if user.phase0_dir else ["--phase0_dir", str(runs_dir / "phase0")]
    return Run(number, folder, (*arguments, *shared, "--out", str(folder)), config)


def make_runs(commands: list[list[str]], flags: list[str], seeds: Sequence[int], runs_dir: Path) -> list[Run]:
    """All runs, equal ones once: every command with the first seed, then with the second, and so on.

    Raises:
        UsageError: for a mistake in any of the commands, or if two runs would share a folder.
    """
    per_command = [with_seeds([*command, *flags], seeds) for command in commands]
    runs: dict[ExperimentConfig, Run] = {}
    for arguments in itertools.chain(*itertools.zip_longest(*per_command)):
        if arguments is None:  # --nb_runs differs between commands
            continue
        run = make_run(arguments, runs_dir, len(runs) + 1)
        if any(run.folder == other.folder and run.config != other.config for other in runs.values()):
            command = shlex.join(["python", "main.py", *arguments])
            raise UsageError(f"{command}: another command, for other data or another device, has the same run folder")
        runs.setdefault(run.config, run)
    return list(runs.values())


def summary_command(runs: Iterable[Run], runs_dir: Path, table: str | None) -> list[str]:
    """The command that summarises all runs that have results; empty if none has."""
    folders = [str(run.folder) for run in runs if (run.folder / "results.json").exists()]
    named = ["--table", table] if table else []
    command = [sys.executable, "scripts/summarise.py", *folders, "--out", str(runs_dir / "summary"), *named]
    return command if folders else []


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    file, options, flags = parse_command_line(arguments)
    try:
        check_setting("runs_dir", str(options.runs_dir))
        commands = chosen_commands(file, options.grid)
        os.chdir(ROOT)  # where main.py runs
        runs = make_runs(commands, flags, options.seeds, options.runs_dir)
        options.runs_dir.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        print(f"run_exp.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run_exp.py: --runs_dir {options.runs_dir}: cannot be made ({error.strerror})", file=sys.stderr)
        return 2
    sweep = Sweep(runs, options.jobs)
    status = sweep.go(60 * options.minutes)
    summary = [] if sweep.signal else summary_command(runs, options.runs_dir, options.table)
    if summary and subprocess.run(summary).returncode:
        print(f"run_exp.py: the summary failed: {shlex.join(summary)}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
