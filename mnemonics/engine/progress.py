"""How far a phase has come: what lets a run be stopped between any two steps and taken up there.

A phase is a sequence of stages; a stage may be a loop of steps. All that a step changes is the model and what it names
as its `parts`, so these and the number of the step are the whole state of the loop. What finished stages gave is kept
for the stages after them. Everything else a phase needs is made again from the state before it: the same draws, from
generators derived from (seed, phase, purpose), give the same splits, teacher and new classifier weights.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mnemonics.engine.errors import Interrupted, NonFiniteLossError, OutOfMemoryError
from mnemonics.engine.log import Pace, RunLog, progress_bar

Partial = dict[str, Any]  # a phase under way, as a checkpoint holds it
NUMBERS = (signal.SIGTERM, signal.SIGINT)
LESS_MEMORY = {"training": "--train_batch_size", "fine-tuning": "--mnemonics_batch_size"}  # stage -> what needs less
LESS_MEMORY |= dict.fromkeys(
    ("new exemplars", "old exemplars"), "--mnemonics_memory, --mnemonics_batch_size or --mnemonics_val_batch_size"
)


def state_of(part: Any) -> Any:
    """What a checkpoint keeps of a tensor, a list of tensors, a generator, or anything with a `state_dict`."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


def restore(part: Any, state: Any) -> None:
    """Set `part`, in place, to what `state_of` gave."""
    if isinstance(part, torch.Generator):
        part.set_state(state.cpu())
    elif isinstance(part, Tensor):
        part.copy_(state)
    elif isinstance(part, list):
        for tensor, value in zip(part, state, strict=True):
            tensor.copy_(value)
    else:
        part.load_state_dict(state)


def is_finite(model: nn.Module) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


class Signals:
    """What to do about signals while entered: the first ends the program at the next opportunity, a second at once.

    Elsewhere than in the main thread, where Python allows no handlers, nothing is done about them.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False
        self.process = os.getpid()

    def __enter__(self) -> "Signals":
        try:
            self.former = {number: signal.signal(number, self.handle) for number in NUMBERS}
        except ValueError:  # not the main thread
            self.former = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process or self.received is not None:
            os._exit(128 + number)
        self.received = number
        if not self.deferring:
            raise Interrupted(number)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def deferred(self, yes: bool = True) -> Iterator[None]:
        """Inside, a signal is only noted (or, with `yes` False, raises Interrupted), so that nothing is left half
        done; `check` tells of it."""
        before, self.deferring = self.deferring, yes
        try:
            if not yes:
                self.check()
            yield
        finally:
            self.deferring = before


@dataclass(frozen=True)
class Loop:
    """A loop of steps that a run can be stopped in."""

    name: str  # of the stage
    steps: int
    per_epoch: int = 1  # steps
    images: int | None = None  # of a step
    curve: str = ""  # name in the log of the loss at the end of each epoch, over all phases

    def place(self, done: int, loss: Tensor | None) -> str:
        """Where it is after `done` steps, for people."""
        epoch = f"epoch {(done - 1) // self.per_epoch + 1} of {-(-self.steps // self.per_epoch)}"
        return epoch if loss is None else f"{epoch}, loss {loss.item():.3f}"


class Progress:
    """The progress of one phase, which a checkpoint is written of now and then. Without arguments: that of a loop which
    nothing is written of.

    Args:
        phase: its number.
        stored: the `Partial` to go on from.
        write: writes a `Partial`.
        minutes: time from one checkpoint to the next.
        signals: what may ask the run to stop.
        log: what lines and curves go to.
    """

    def __init__(
        self,
        phase: int | None = None,
        stored: Partial | None = None,
        write: Callable[[Partial], None] | None = None,
        minutes: float = float("inf"),
        signals: Signals | None = None,
        log: RunLog | None = None,
    ):
        self.phase, self.stored, self.write, self.minutes = phase, stored or {}, write, minutes
        self.signals, self.log = signals or Signals(), log
        self.model: nn.Module | None = None
        self.loss: Tensor | None = None  # of the last step, on the device
        self.stage = "set-up"  # where we are
        self.step = 0  # of the loop that we are in
        self.done: dict[str, Any] = dict(self.stored.get("done", {}))
        self.seconds: dict[str, float] = dict(self.stored.get("seconds", {}))
        self.timing: tuple[str, float] | None = None  # (stage, start) of the `timed` block we are in
        self.written = time.monotonic()

    def watch(self, model: nn.Module) -> None:
        """From now on `model` is part of what is written; it gets the weights of the checkpoint, if there is one."""
        self.model = model
        if "model" in self.stored:
            model.load_state_dict(self.stored["model"])

    def once(self, stage: str, function: Callable[..., Any], *arguments: Any, pure: bool = False) -> Any:
        """What `function(*arguments)` gives, or gave before the run was interrupted: plain values and tensors.

        Args:
            pure: whether it changes nothing, so that it can be broken off anywhere and begun again.
        """
        self.stage = stage
        if stage not in self.done:
            try:
                with self.signals.deferred(not pure):
                    result = function(*arguments)
            except Interrupted:
                if pure:
                    self.save()
                raise
            self.done[stage] = result
            self.between()
        return self.done[stage]

    def steps(self, loop: Loop, **parts: Any) -> Iterator[int]:
        """0, 1, ..., steps - 1, or what was left of it when the loop was interrupted. Each step ends with `report`.

        Args:
            parts: what the steps change; set to what they were when the loop was interrupted.
        """
        first = 0
        if self.stored.get("loop") == loop.name:
            first, states = self.stored["step"], self.stored["parts"]
            for name, part in parts.items():
                restore(part, states[name])
            self.stored = {}
        title = loop.name if self.phase is None else f"phase {self.phase}, {loop.name}"
        if loop.curve:
            self.line(f"{title}: {loop.steps // loop.per_epoch} epochs, {loop.steps} updates")
        with progress_bar(title, loop.steps, first, loop.images, self.log and self.log.line) as bar:
            pace = Pace()
            for step in range(first, loop.steps):
                self.step = step
                if step > first:
                    self.between(loop.name, **parts)
                yield step
                if not bar.disable and time.time() - bar.last_print_t >= bar.mininterval:  # reading a loss stalls a GPU
                    bar.set_description_str(f"{title}: {loop.place(step + 1, self.loss)}", refresh=False)
                bar.update()
                if slower := pace.slower():
                    self.line(f"{title}: {slower}")
                if loop.curve and (step + 1) % loop.per_epoch == 0:
                    self.scalar(loop.curve, self.loss.item(), ((self.phase or 0) * loop.steps + step) // loop.per_epoch)
        self.loss, self.step = None, 0

    def report(self, loss: Tensor) -> None:
        """The loss of a step, a scalar on the device; it is read only when it is shown."""
        self.loss = loss.detach()

    def line(self, text: str) -> None:
        """Log a line."""
        if self.log is not None:
            self.log.line(text)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log a point of a curve."""
        if self.log is not None:
            self.log.scalar(name, value, step)

    def between(self, loop: str | None = None, **parts: Any) -> None:
        """Between two steps, or two stages: write a checkpoint if it is time or the run is to stop.

        Raises:
            Interrupted: after that, if the run is to stop.
        """
        if self.signals.received is not None or time.monotonic() - self.written >= 60 * self.minutes:
            self.save(loop, **parts)
            self.signals.check()

    def save(self, loop: str | None = None, **parts: Any) -> None:
        """Write a checkpoint: the `parts` before a step of `loop`, or nothing between two stages."""
        if self.write is None or self.model is None or not is_finite(self.model):  # that would be of no use
            return
        states = {name: state_of(part) for name, part in parts.items()}
        place = {"loop": loop, "step": self.step, "parts": states}
        with self.signals.deferred():
            self.write({"model": self.model.state_dict(), "done": self.done, "seconds": self.seconds_so_far(), **place})
        self.written = time.monotonic()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block, the work queued on a CUDA device included, to `seconds[stage]`."""
        self.timing = stage, time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds, self.timing = self.seconds_so_far(), None

    def seconds_so_far(self) -> dict[str, float]:
        """Stage -> seconds, the block that we are in included."""
        if self.timing is None:
            return self.seconds
        stage, start = self.timing
        return self.seconds | {stage: round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)}


@contextmanager
def errors_of(progress: Progress) -> Iterator[None]:
    """Make the errors of a phase say where they happened."""
    try:
        yield
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"phase {progress.phase}, {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        flag = LESS_MEMORY.get(progress.stage, "--eval_batch_size")
        reason = " ".join(str(error).split())[:200]
        device = "cpu" if progress.model is None else next(progress.model.parameters()).device
        where = f"phase {progress.phase}, {progress.stage}: not enough memory on {device}"
        raise OutOfMemoryError(f"{where}; a smaller {flag} needs less ({reason})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Also as the driver says it, in an exception of another type."""
    words = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def refuse_non_finite(model: nn.Module) -> None:
    """Raises NonFiniteLossError if a weight is NaN or infinite."""
    if not is_finite(model):
        raise NonFiniteLossError("weights are NaN or infinite at its end; lower learning rates may help")
