"""Files of a run folder: they appear whole or not at all, and a damaged one is known by its checksums."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mnemonics.engine.distributed import from_main
from mnemonics.engine.errors import UsageError
from mnemonics.engine.pickle_scan import PickleError, open_archive, scan

FORMAT = 4  # 3: exemplars held out are stored apart; 4: a mask says which they are
OLDEST = 3  # of what finished runs left; runs continue only from this version's format
PROTOCOL_2 = b"\x80\x02"  # the start of every pickle that torch.save writes


class DamagedError(ValueError):
    """A file that is not, or not any more, what `save` wrote."""


def atomic_write(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Write `data` so that after a crash at any instant `path` holds either all of it or what it held before. What it
    held before is then kept as `keep`; between the two renames only `keep` is there.

    Raises:
        OSError: naming the file; one of `path` and `keep` still holds what `path` held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # there only if something above failed


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError say that it is about `path`: one of writing does not know, one of a temporary file is no help."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make sure that new names in `folder` are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO, inherited: bool = False) -> bool:
    """Whether this process now has the lock of an open file; the system frees it when the process ends, however.

    Args:
        inherited: whether processes that are started with the open file have the lock too.
    Raises:
        UsageError: on a system without such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise UsageError("this system has no file locks: Linux and macOS are supported, Windows through WSL") from None
    try:
        (fcntl.flock if inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them, depends on the system
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value`, unless the file holds it already."""
    write_if_new(path, (json.dumps(value, indent=1) + "\n").encode())


def write_if_new(path: Path, data: bytes) -> None:
    """Write `data`, unless the file holds it already."""
    if not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values, as torch.save does; the file that was there is kept as `keep`, if given."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    atomic_write(path, buffer.getvalue(), keep)


def load(path: Path, device: torch.device, oldest: int = FORMAT) -> dict[str, Any]:
    """Read what `save` wrote, in this format or one since `oldest`; rank 0 does, for all processes. Runs no code from
    the file.

    Raises:
        DamagedError: if it is no file that torch.save wrote, or was changed since.
        ValueError: if it is of another format version, or something else that is whole.
        OSError: if it cannot be read.
    """
    return parsed(path, from_main(path.read_bytes), device, oldest)


def load_alone(path: Path, oldest: int = FORMAT) -> dict[str, Any]:
    """As `load`, onto the CPU, for this process alone."""
    return parsed(path, path.read_bytes(), torch.device("cpu"), oldest)


def parsed(path: Path, data: bytes, device: torch.device, oldest: int = FORMAT) -> dict[str, Any]:
    """What `save` was given when it wrote `data` to `path`; raises as `load`."""
    try:
        pickled = whole_pickle(data)
    except Exception as error:  # zipfile promises no closed list of errors
        raise DamagedError(f"{path}: damaged, or no checkpoint of this program ({reason(error)})") from error
    try:
        if not pickled.startswith(PROTOCOL_2):  # torch.load warns of others, then refuses them
            raise PickleError("another protocol than torch.save's")
        scan(pickled)
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        version = int(state["format"])
    except Exception as error:  # torch.load promises no closed list of errors
        raise ValueError(f"{path}: cannot be read, though its checksums are right ({reason(error)})") from error
    if not oldest <= version <= FORMAT:
        raise ValueError(f"{path}: checkpoint format {version}, this version reads format {FORMAT}")
    return state


def whole_pickle(data: bytes) -> bytes:
    """The pickle in a file that torch.save wrote. Raises whatever where any checksum in the zip archive is wrong."""
    archive, name = open_archive(data)
    damaged = archive.testzip()
    if damaged is not None:
        raise PickleError(f"the checksum of {damaged} is wrong")
    return archive.read(name)


def reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
