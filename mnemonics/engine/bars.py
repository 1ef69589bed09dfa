"""How a loop is getting on: a progress bar on a terminal; elsewhere, as in the log of a job, a line now and then."""

import sys
import time
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from mnemonics.engine.distributed import is_main

LINE_SECONDS = 60.0  # between lines
LOOK_STEPS = 50  # between looks at the loss on a terminal: each of them stalls a GPU


class Bar:
    """The bar of one loop, on rank 0; a context manager.

    Args:
        title: phase and stage.
        steps: how many there are in all, of which `first` are done.
        per_epoch: how many of them make an epoch.
        images: of a step; what is counted then. None: steps are.
        say: prints a line.
    """

    def __init__(
        self, title: str, steps: int, first: int, per_epoch: int, images: int | None, say: Callable[[str], None] | None
    ):
        self.title, self.steps, self.first, self.per_epoch, self.images = title, steps, first, per_epoch, images
        self.say = say if is_main() else None
        self.on_terminal = sys.stderr.isatty() and is_main()
        self.tqdm = tqdm(
            desc=title,
            total=steps,
            initial=first,
            unit=" updates" if images is None else " images",
            unit_scale=images or False,
            leave=False,
            disable=not self.on_terminal,
        )
        self.start = self.told = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.tqdm.close()

    def show(self, done: int, loss: Tensor | None) -> None:
        """`done` steps are done, the last one with this loss."""
        self.tqdm.update()
        if self.on_terminal:
            if done % LOOK_STEPS == 0 or self.images is None:
                self.tqdm.set_postfix_str(self.place(done, loss), refresh=False)
        elif self.say is not None and time.monotonic() - self.told >= LINE_SECONDS:
            self.told = time.monotonic()
            self.say(f"{self.title}: {self.place(done, loss)}, {self.speed(done)}")

    def place(self, done: int, loss: Tensor | None) -> str:
        epochs = -(-self.steps // self.per_epoch)
        epoch = f"epoch {(done - 1) // self.per_epoch + 1} of {epochs}"
        return epoch if loss is None else f"{epoch}, loss {loss.item():.3f}"

    def speed(self, done: int) -> str:
        """Images (or updates) per second, and the time left."""
        rate = (done - self.first) / (self.told - self.start)
        shown = f"{rate:.2g} updates/s" if self.images is None else f"{rate * self.images:.0f} images/s"
        minutes = (self.steps - done) / rate / 60
        return f"{shown}, {minutes // 60:.0f} h {minutes % 60:02.0f} min left"
