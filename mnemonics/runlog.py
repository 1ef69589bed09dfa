"""What a run tells while it runs: log.txt and the console (lines), tensorboardX (curves and pictures)."""

import time
from pathlib import Path

from tensorboardX import SummaryWriter
from torch import Tensor
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

    def image(self, name: str, image: Tensor, step: int) -> None:
        """A uint8 picture [3, h, w]."""
        self.writer.add_image(name, image.cpu().numpy(), step)
