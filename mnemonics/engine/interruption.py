"""Being asked to stop: SIGTERM, as job schedulers send it, and SIGINT (Ctrl-C)."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The run was asked to stop. No Exception: what catches those must not take it for an error."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}")
        self.status = 128 + number  # the exit status that shells and job schedulers expect


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
