"""Errors that end a command in one line, and `command`, which every command of this project is wrapped in."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str] | None], int | None]


class UsageError(Exception):
    """A user's mistake: one line naming the flag, its value and what would work; exit status 2."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class RunError(RuntimeError):
    """The run cannot go on, which is nobody's mistake; the message says why, and what may help; exit status 1."""


class NonFiniteLossError(RunError):
    """A loss became NaN or infinite; the message says where and with which rate."""


class OutOfMemoryError(RunError):
    """There is not enough memory on the device; the message says for what, and which flag needs less."""


class Interrupted(BaseException):
    """The command was asked to stop. No Exception: what catches those must not take it for an error."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}")
        self.status = 128 + number  # the exit status that shells and job schedulers expect


def printable(text: str) -> str:
    """`text` as one line that any terminal shows as it is: in names of files and values of flags there can be line
    breaks, control characters and bytes that are no UTF-8, which become \\n, \\x1b, \\udce4 and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def described(error: OSError) -> str:
    """In one line: which file, and what about it."""
    reason = error.strerror or " ".join(str(error).split())
    return f"{error.filename}: {reason}" if error.filename else reason


def command(name: str) -> Callable[[Main], Callable[[Sequence[str] | None], int]]:
    """Decorates the `main` of the command `name`: arguments (None: those of the process) -> exit status, None for 0.

    What goes wrong is told in one line on standard error, without a traceback: status 2 for what the user has to
    change, 1 for a run or a disk that fails, 128 + n for a signal. Terminals that lack a character get its escape, and
    a reader that closes the pipe early, such as `head`, is no error.
    """

    def decorate(main: Main) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(main)
        def wrapped(arguments: Sequence[str] | None = None) -> int:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # main.py sets it so while importing
                signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="backslashreplace")
            try:
                status = main(arguments) or 0
                sys.stdout.flush()
                return status
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
                return 128 + signal.SIGPIPE
            except UsageError as error:
                message, status = str(error), 2
            except RunError as error:
                message, status = str(error), 1
            except OSError as error:
                message, status = f"{described(error)}; what was saved before is whole, the same command continues", 1
            except Interrupted as interruption:
                message, status = f"{interruption}: stopped; the same command continues", interruption.status
            except KeyboardInterrupt:
                message, status = "interrupted", 128 + signal.SIGINT
            print(f"{name}: {message}", file=sys.stderr)
            return status

        return wrapped

    return decorate
