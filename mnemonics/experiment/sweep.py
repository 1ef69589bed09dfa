"""Many runs of main.py: which may run side by side, and the processes that run them (scripts/run_exp.py)."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnemonics.config.fields import ExperimentConfig, result_settings
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.phase0 import phase0_settings
from mnemonics.experiment.results import read_results

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30  # how long a process that was asked to end may take


@dataclass(frozen=True)
class Run:
    """One experiment of the list."""

    number: int  # its place in the list, from 1
    folder: Path
    arguments: tuple[str, ...]  # of main.py
    config: ExperimentConfig  # settled: as config.json will hold it

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for runs that train the same model in phase 0, and share it."""
        c = self.config
        return (*phase0_settings(c).items(), c.data_dir, c.device, c.gpu, c.phase0_dir)

    def in_phase_0(self) -> bool:
        """Whether phase 0 is still to be finished."""
        return not (self.folder / "phase_0.pt").exists()


def results_of(run: Run) -> dict:
    """The content of results.json; empty where there is none that can be read."""
    try:
        return read_results(run.folder / "results.json")
    except UsageError:
        return {}


def progress(run: Run) -> tuple[int, str]:
    """The number of finished phases, phase 0 included, and the state in words; (0, "") before phase 0 is done."""
    results = results_of(run)
    try:
        done, name = len(results["phases"]), results["headline"]
        average = results["summary"]["average_accuracy"][name]
        return done, f"phase {done - 1} of {results['config']['nb_phases']}, {average:.2f}% average ({name.upper()})"
    except (KeyError, TypeError):
        return 0, ""


def finished(run: Run) -> bool:
    """Whether the folder holds all phases of this very run; if the settings differ, main.py will say so."""
    results = results_of(run)
    stored, phases = results.get("config", {}), results.get("phases", [])
    same = all(stored.get(name) == value for name, value in result_settings(run.config).items())
    return run.config.resume and same and len(phases) == stored.get("nb_phases", 0) + 1


def may_start(
    pending: Iterable[Run], running: Iterable[Run], free: int, in_phase_0: Callable[[Run], bool] = Run.in_phase_0
) -> list[Run]:
    """Up to `free` of the pending runs, first of the list first. While a run of a group is in phase 0, the others that
    need the same model leave their place to other groups, instead of waiting for it or training it too."""
    training = {run.group for run in running if in_phase_0(run)}
    chosen: list[Run] = []
    for run in pending:
        if len(chosen) == free:
            break
        if in_phase_0(run):
            if run.group in training:
                continue
            training.add(run.group)
        chosen.append(run)
    return chosen


def start_process(run: Run, env: dict[str, str]) -> subprocess.Popen | None:
    """Start main.py, its output appended to the log. None if another process has the log, and so the run, in hand.

    The lock on the log goes with the open file to main.py, so it lasts as long as main.py does, also without us.
    """
    command = [sys.executable, "main.py", *run.arguments]
    with open(run.log, "ab") as log, contextlib.suppress(BlockingIOError):
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=env, start_new_session=True, **streams)  # Ctrl-C is ours alone
    return None


def run_elsewhere(run: Run) -> bool:
    """Whether a process that is not ours works on the run, such as one left by a killed run_exp.py."""
    with contextlib.suppress(FileNotFoundError), open(run.log, "rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def child_environment(jobs: int) -> dict[str, str]:
    """With several runs at a time each gets its share of the cores, unless the user said otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    return threads | dict(os.environ) | {"PYTHONUNBUFFERED": "1"}


class Sweep:
    """Starts the runs, tells their progress and stops them."""

    def __init__(self, runs: Sequence[Run], jobs: int):
        self.began, self.total, self.jobs, self.env = time.monotonic(), len(runs), jobs, child_environment(jobs)
        self.pending = list(runs)
        self.running: dict[Run, subprocess.Popen] = {}
        self.told: dict[Run, str] = {}  # what was last said of a run
        self.failures: list[str] = []
        self.signal = 0  # the one that asked us to stop

    def go(self, seconds: float) -> int:
        """Work until all is done, `seconds` are over or a signal comes; nothing is running then. Returns the status."""
        handlers = {s: signal.signal(s, self.remember) for s in (signal.SIGINT, signal.SIGTERM)}
        print(f"{self.total} runs in {self.pending[0].folder.parent}, {self.jobs} at a time", flush=True)
        for run in [run for run in self.pending if finished(run)]:
            self.drop(run)
        while (self.pending or self.running) and not self.signal and time.monotonic() - self.began < seconds:
            self.start()
            time.sleep(POLL_SECONDS)
            self.watch()
        self.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if self.pending:
            why = signal.Signals(self.signal).name if self.signal else "out of time"
            print(f"{why}: {len(self.pending)} of {self.total} runs left; the same command continues", flush=True)
        for failure in self.failures:
            print(f"failed: {failure}", flush=True)
        return 128 + self.signal if self.signal else int(bool(self.failures))

    def remember(self, number: int, frame: object) -> None:
        self.signal = number

    def say(self, run: Run, text: str) -> None:
        """A line on a run, unless it is the one said last."""
        if self.told.get(run) != text:
            seconds = int(time.monotonic() - self.began)
            clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            print(f"[{run.number:2}/{self.total}] {clock} {run.folder.name}: {text}", flush=True)
        self.told[run] = text

    def drop(self, run: Run) -> None:
        self.pending.remove(run)
        self.say(run, f"finished before: {progress(run)[1]}")

    def start(self) -> None:
        """Fill the free slots."""
        free = self.jobs - len(self.running)
        elsewhere = [run for run in self.pending if run_elsewhere(run)] if free else []
        for run in elsewhere:
            self.say(run, "another process is working on it")
        ours = [run for run in self.pending if run not in elsewhere]
        for run in may_start(ours, [*self.running, *elsewhere], free):
            if finished(run):  # by another process, meanwhile
                self.drop(run)
            elif process := start_process(run, self.env):
                self.pending.remove(run)
                self.running[run] = process
                done, where = progress(run)
                self.say(run, f"continues after {where}" if done else "started")
                self.told[run] = where

    def watch(self) -> None:
        """Tell what happened since the last look."""
        for run, process in list(self.running.items()):
            status, (done, where) = process.poll(), progress(run)
            if status is None and done:
                self.say(run, where)
            elif status == 0:
                del self.running[run]
                self.say(run, f"finished: {where}")
            elif status is not None:
                del self.running[run]
                reason = last_line(run.log)
                self.say(run, f"failed: {reason}")
                self.failures.append(f"{run.folder.name}, status {status}: see {run.log}")

    def stop(self) -> None:
        """End what is running; it counts as pending again."""
        self.watch()
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for run, process in self.running.items():
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.say(run, "stopped")
        self.pending = [*self.running, *self.pending]
        self.running = {}


def last_line(log: Path) -> str:
    """What a log ends with; a progress bar returns the carriage instead of ending its line."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
