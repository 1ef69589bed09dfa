"""What a run tells while it runs: log.txt and the console (lines), tensorboardX (curves)."""

import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm


class RunLog:
    """Writes into one run folder; a context manager that closes its files."""

    def __init__(self, folder: Path):
        self.file = open(folder / "log.txt", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by __exit__)
        self.writer = SummaryWriter(logdir=str(folder))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        self.writer.close()

    def line(self, text: str) -> None:
        """A line for the console (above any progress bar) and, with the time, for log.txt."""
        tqdm.write(text)
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self.file)

    def scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)
