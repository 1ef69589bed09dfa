"""What a run tells while it runs: log.txt and the console (lines), tensorboardX (curves)."""

import os
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from mnemonics.distributed import is_main


class RunLog:
    """Writes into one run folder, on rank 0 only; a context manager that closes its files."""

    def __init__(self, folder: Path):
        path = folder / "log.txt" if is_main() else Path(os.devnull)
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by __exit__)
        self.writer = SummaryWriter(logdir=str(folder), write_to_disk=is_main())

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
