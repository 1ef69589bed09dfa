"""What a run tells while it runs: log.txt and the console (lines, bars), TensorBoard's events (curves, images)."""

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from mnemonics.engine.distributed import is_main
from mnemonics.engine.files import naming

LINE_SECONDS = 60.0  # between the lines that stand for a bar where there is no terminal
PACE_SECONDS, FAR_SLOWER = 60.0, 3.0  # how long steps take this many times as long, until that is told


def progress_bar(title: str, steps: int, done: int, images: int | None, say: Callable[[str], None] | None) -> tqdm:
    """The bar of a loop of `steps` steps, of which some are done: on a terminal, else a line now and then by `say`.

    Args:
        images: of each step; what is counted then. None: steps are.
        say: prints a line; None: nothing is shown.
    """
    on_terminal = sys.stderr.isatty()
    lines = {
        "file": Lines(say),
        "mininterval": LINE_SECONDS,
        "maxinterval": 2 * LINE_SECONDS,
        "delay": LINE_SECONDS,
        "bar_format": "{desc}, {rate_noinv_fmt}, {remaining} left",
    }
    return tqdm(
        desc=title,
        total=steps,
        initial=done,
        unit=" updates" if images is None else " images",
        unit_scale=images or False,
        miniters=1,
        smoothing=0,
        leave=False,
        disable=say is None or not is_main(),
        **{} if on_terminal else lines,
    )


class Pace:
    """Notices when the steps of a loop have become far slower than they were in its first minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.start, self.steps, self.told = clock, clock(), 0, False
        self.first = 0.0  # steps per second, in a whole minute: a GPU is behind the host at first

    def slower(self) -> str:
        """Called after each step: what to tell, once, else nothing."""
        self.steps, now = self.steps + 1, self.clock()
        if self.told or now - self.start < PACE_SECONDS:
            return ""
        rate = self.steps / (now - self.start)
        self.first, self.start, self.steps = self.first or rate, now, 0
        self.told = FAR_SLOWER * rate < self.first
        return f"{rate:.3g} steps/s, after {self.first:.3g}: is this machine busy?" if self.told else ""


class Lines(io.TextIOBase):
    """A file for tqdm that makes a line of each state of the bar."""

    def __init__(self, say: Callable[[str], None] | None):
        self.say = say

    def write(self, text: str) -> None:
        if text.strip():
            self.say(text.strip())


class RunLog:
    """Writes into one run folder, on rank 0 only; a context manager that closes its files."""

    def __init__(self, folder: Path):
        self.path = folder / "log.txt" if is_main() else Path(os.devnull)
        encoding = {"encoding": "utf-8", "errors": "backslashreplace"}  # names of folders need not be UTF-8
        self.file = open(self.path, "a", buffering=1, **encoding)  # noqa: SIM115 (closed by __exit__)
        from mnemonics.engine.events import Events  # tensorboardX, which nothing but a run needs

        self.events = Events(folder / "events") if is_main() else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        with naming(self.path):
            self.file.close()
        if self.events is not None:
            self.events.close()

    def line(self, text: str) -> None:
        """A line for the console (above any progress bar) and, with the time, for log.txt."""
        tqdm.write(text)
        with naming(self.path):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self.file)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        if self.events is not None:
            self.events.scalar(name, value, step)

    def image(self, name: str, picture: Path, step: int) -> None:
        """A picture, from its PNG file."""
        if self.events is not None:
            self.events.image(name, picture, step)
