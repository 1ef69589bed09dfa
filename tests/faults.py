"""A server of runs that are to go wrong. It imports everything once and forks a child for each command, so that a run
starts in milliseconds instead of the seconds that torch takes.

    python tests/faults.py        requests and answers are lines of JSON, see `serve`
"""

import builtins
import contextlib
import errno
import gc
import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HANGS = 120  # seconds after which a child is ended by SIGALRM: a guard, nothing takes nearly as long


@dataclass(frozen=True)
class Outcome:
    """How a command ended. Negative status: by that signal."""

    status: int
    out: str
    err: str
    operations: list[str]  # what `Disk` counted


class Child:
    """A command that a `Server` has started."""

    def __init__(self, server: "Server", pid: int, files: Path):
        self.server, self.pid, self.files = server, pid, files

    def kill(self, number: int) -> None:
        """Send a signal. Until `wait` the number of the process is not given to another one, even if it has ended."""
        os.kill(self.pid, number)

    def has_ended(self) -> bool:
        return self.server.ask({"ended": self.pid})["ended"]

    def wait(self) -> Outcome:
        status = self.server.ask({"wait": self.pid})["status"]
        operations = self.files.with_suffix(".operations")
        out, err = (self.files.with_suffix(ending).read_text() for ending in (".out", ".err"))
        return Outcome(status, out, err, json.loads(operations.read_text()) if operations.exists() else [])


class Server:
    """The client's side: starts the server, and children in it. A context manager."""

    def __enter__(self) -> "Server":
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment, cwd=ROOT)  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=HANGS)
        self.process.stdout.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, arguments: list[str], files: Path, **faults: Any) -> Child:
        """Start `python main.py <arguments>`; what it prints goes to `files`.out and .err.

        Args:
            faults: names of functions of `FAULTS` and their arguments.
        """
        request = {"arguments": list(map(str, arguments)), "files": str(files), "faults": faults}
        return Child(self, self.ask(request)["pid"], files)

    def run(self, arguments: list[str], files: Path, **faults: Any) -> Outcome:
        return self.start(arguments, files, **faults).wait()


class Disk:
    """What goes to the disk, counted, until something happens at operation `number` (from 0): `happens` is the name of
    an errno; "kill" for SIGKILL; "signal" for SIGTERM. In the middle of it, where it is a write: half of the bytes are
    written before.

    Counted are: making files and folders, write, fsync, rename and removal.
    """

    def __init__(self, number: int | None = None, happens: str = "ENOSPC", lasting: bool = False):
        self.number, self.happens, self.lasting = number, happens, lasting
        self.operations: list[str] = []
        self.open, self.functions = io.open, {n: getattr(os, n) for n in ("replace", "fsync", "mkdir", "unlink")}
        for name, function in self.functions.items():
            setattr(os, name, self.counted(name, function))
        builtins.open = io.open = self.opened

    def counted(self, name: str, function: Callable) -> Callable:
        def wrapped(target: Any, *arguments: Any, **options: Any) -> Any:
            self.count(f"{name} {target}", target)
            return function(target, *arguments, **options)

        return wrapped

    def count(self, operation: str, target: Any, half: Callable[[], Any] = bool) -> None:
        """Note an operation, which then succeeds unless this raises or kills."""
        if str(target).startswith("/dev/"):
            return
        number = len(self.operations)
        self.operations.append(operation)
        if self.number is None or number < self.number or (number > self.number and not self.lasting):
            return
        if self.happens in ("kill", "signal"):
            half()
            os.kill(os.getpid(), signal.SIGKILL if self.happens == "kill" else signal.SIGTERM)
            return
        half()  # the disk takes what it has room for, then refuses
        code = getattr(errno, self.happens)
        nameless = isinstance(target, int) or operation.startswith("write")
        raise OSError(code, os.strerror(code), *() if nameless else (str(target),))

    def opened(self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        """`open`, of whose files the writing is counted."""
        if not set(mode) & set("wax+") or isinstance(file, int):
            return self.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.count(f"open {file}", file)
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                write = super().write
                disk.count(f"write {self.name}", self.name, lambda: write(bytes(data)[: len(data) // 2]))
                return write(data)

        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if "b" in mode and buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


def without_drawing() -> None:
    """Pictures take a third of the time of a tiny run: write empty ones."""
    from mnemonics import algorithm as experiment
    from mnemonics.engine import log as runlog
    from mnemonics.engine.files import atomic_write

    experiment.write_report = lambda runs, path, **running: atomic_write(path, b"a page")
    experiment.plot_exemplars = lambda *arguments: atomic_write(arguments[-1], b"exemplars")
    runlog.RunLog.image = lambda *arguments: None


def before(place: str, what: Callable[..., None], call: int = 0) -> None:
    """Let `what`, which is given the arguments, happen before call number `call` (from 0) of a function or method."""
    module, *path, name = place.split(":")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), itertools.count()

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            what(*arguments)
        return function(*arguments, **options)

    setattr(owner, name, wrapped)


def stopped(place: str, number: int) -> None:
    """A signal comes when the function at `place` is called."""
    before(place, lambda *arguments: os.kill(os.getpid(), number))


def out_of_memory(place: str) -> None:
    """There is no memory left when the function at `place` is called."""

    def fail(*arguments: Any) -> None:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")

    before(place, fail)


def diverging(call: int) -> None:
    """Call number `call` of SGD's step finds NaN in the weights."""
    before("mnemonics.training:SGD:step", lambda sgd: sgd.parameters[0].data.fill_(float("nan")), call)


FAULTS: dict[str, Callable[..., Any]] = {
    "drawn": without_drawing,
    "disk": Disk,
    "stopped": stopped,
    "out_of_memory": out_of_memory,
    "diverging": diverging,
}


@contextlib.contextmanager
def output_to(files: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to `files`.out and .err."""
    for descriptor, ending in ((1, ".out"), (2, ".err")):
        file = os.open(files.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    yield
    sys.stdout.flush()
    sys.stderr.flush()


def child(arguments: list[str], files: Path, faults: dict[str, dict]) -> int:
    """Be `python main.py <arguments>`. Returns the exit status."""
    import main

    signal.alarm(HANGS)
    sys.argv = ["main.py", *arguments]
    files.with_suffix(".operations").unlink(missing_ok=True)
    with output_to(files):
        made = {name: FAULTS[name](**options) for name, options in faults.items()}
        try:
            status = main.main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
    if "disk" in made:
        with made["disk"].open(files.with_suffix(".operations"), "w") as file:
            json.dump(made["disk"].operations, file)
    return status


def serve() -> None:
    """Answer requests: {"arguments", "files", "faults"} starts a child, {"ended": pid} asks whether it has ended,
    {"wait": pid} waits for that."""
    answers = os.fdopen(os.dup(1), "w")
    warm_up()
    gc.collect()
    gc.freeze()  # the children share what is there, and need not copy it to look at it
    for line in sys.stdin:
        request = json.loads(line)
        if "arguments" in request:
            assert threading.active_count() == 1  # a fork copies no threads
            pid = os.fork()
            if pid == 0:
                answers.close()
                os._exit(child(request["arguments"], Path(request["files"]), request["faults"]) or 0)
            answer = {"pid": pid}
        elif "ended" in request:
            info = os.waitid(os.P_PID, request["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer = {"ended": info is not None}
        else:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        print(json.dumps(answer), file=answers, flush=True)


def warm_up() -> None:
    """Run something tiny, so that all that is imported late is there."""
    sys.path.insert(0, str(ROOT))
    from tqdm import tqdm

    from mnemonics import algorithm as experiment
    from mnemonics.experiment.state import parse_args

    tqdm.monitor_interval = 0  # no thread

    flags = ("--dataset digits --network resnet8 --max_images_per_class 2 --nb_protos 2 --epochs 1 --nb_cl_fg 5 "
             "--nb_cl 5 --mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1 --device cpu")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        experiment.run(parse_args([*flags.split(), "--out", f"{folder}/run"]))


if __name__ == "__main__":
    serve()
