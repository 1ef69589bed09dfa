"""Many runs of main.py, several at a time: started, watched and stopped (scripts/run_exp.py)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from mnemonics.config.fields import ExperimentConfig, result_settings
from mnemonics.config.presets import OLDER
from mnemonics.engine.errors import Interrupted, UsageError
from mnemonics.engine.files import try_lock
from mnemonics.experiment.results import read_results

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30  # how long a process that was asked to end may take


@dataclass(frozen=True)
class Run:
    """One experiment of the list."""

    folder: Path
    arguments: tuple[str, ...]  # of main.py
    config: ExperimentConfig  # settled: as config.json will hold it
    fingerprint: str | None = None  # of the data set, where it was looked at

    @property
    def log(self) -> Path:
        """The file that the output of main.py is appended to."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def results(self) -> dict:
        """The content of results.json; empty where there is none that can be read."""
        try:
            return read_results(self.folder / "results.json")
        except UsageError:
            return {}

    def progress(self) -> str:
        """The phases done so far and their average accuracy, in words; empty before phase 0 is done."""
        results = self.results()
        if "summary" not in results:
            return ""
        done, name = len(results["phases"]), results["headline"]
        average = results["summary"]["average_accuracy"][name]
        return f"phase {done - 1} of {self.config.nb_phases}, {average:.2f}% average ({name.upper()})"

    def finished(self) -> bool:
        """Whether the folder holds all phases of this very run; if settings or data differ, main.py will say so."""
        results = self.results()
        stored = OLDER | results.get("config", {})
        same = all(stored.get(name) == value for name, value in result_settings(self.config).items())
        same = same and Path(stored.get("data_dir", "")).resolve() == Path(self.config.data_dir).resolve()
        same = same and self.fingerprint in (None, (results.get("data") or {}).get("fingerprint"))
        return self.config.resume and same and len(results.get("phases", [])) == self.config.nb_phases + 1


class Sweep:
    """Runs to be worked off, `jobs` at a time, for as long as nobody stops them and `seconds` are not over."""

    def __init__(self, runs: Sequence[Run], jobs: int, seconds: float):
        self.runs, self.jobs, self.env = runs, jobs, child_environment(jobs)
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.signal = 0  # the one that asked us to stop

    def go(self) -> int:
        """Work off all runs, a thread for each process; nothing is running when it returns or raises.

        Returns:
            The exit status: 1 if a run failed.
        Raises:
            Interrupted: after SIGTERM or Ctrl-C.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupted)
        print(f"{len(self.runs)} runs in {self.runs[0].folder.parent}, {self.jobs} at a time", flush=True)
        with ThreadPoolExecutor(self.jobs) as pool:
            ends = list(pool.map(self.work_off, self.runs))
        if None in ends:
            print(f"{ends.count(None)} of {len(self.runs)} runs left; the same command continues", flush=True)
        for run, status in zip(self.runs, ends, strict=True):
            if status:
                print(f"failed: {run.folder.name}, status {status}: see {run.log}", flush=True)
        if self.signal:
            raise Interrupted(self.signal)
        return int(any(ends))

    def interrupted(self, number: int, frame: object) -> None:
        """The signal handler: from now on, time is over."""
        self.signal, self.deadline = number, 0.0

    def say(self, run: Run, text: str) -> None:
        """Print a line on a run, at once, so that lines of several threads do not mix."""
        clock = timedelta(seconds=int(time.monotonic() - self.began))
        number = f"[{self.runs.index(run) + 1:2}/{len(self.runs)}]"
        print(f"{number} {clock} {run.folder.name}: {text}\n", end="", flush=True)

    def work_off(self, run: Run) -> int | None:
        """One run from its start to its end, telling its progress. Returns its exit status; None if it is left."""
        if run.finished():
            self.say(run, f"finished before: {run.progress()}")
            return 0
        process, said = None, None
        try:
            while time.monotonic() < self.deadline:
                process = process or start_process(run, self.env)
                status = process.poll() if process else None
                if status is not None:
                    self.say(run, f"failed: {last_line(run.log)}" if status else f"finished: {run.progress()}")
                    return status
                news = run.progress() or "started" if process else "another process is working on it"
                if news != said:
                    self.say(run, news)
                said = news
                time.sleep(POLL_SECONDS)
        finally:
            if process:
                stop(process)
        if process:
            self.say(run, "stopped")
        return None


def child_environment(jobs: int) -> dict[str, str]:
    """With several runs at a time each gets its share of the cores, unless the user said otherwise."""
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))} if jobs > 1 else {}
    return threads | dict(os.environ) | {"PYTHONUNBUFFERED": "1"}


def start_process(run: Run, env: dict[str, str]) -> subprocess.Popen | None:
    """Start main.py. None if another process has the run in hand, such as one left by a killed run_exp.py.

    The lock on the log goes with the open file to main.py, so it lasts as long as main.py does, also without us.
    """
    with open(run.log, "ab") as log:
        if not try_lock(log, inherited=True):
            return None
        command = [sys.executable, "main.py", *run.arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=env, start_new_session=True, **streams)  # Ctrl-C is ours alone


def stop(process: subprocess.Popen) -> None:
    """Ask a process to end, and end it if it does not. Nothing happens to one that has ended."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """What a log ends with; a progress bar returns the carriage instead of ending its line."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
