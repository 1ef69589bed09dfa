"""Files of a run folder: they appear whole or not at all, and a damaged one is known by its checksum."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mnemonics.engine.distributed import bytes_from_main, world

FORMAT = 3  # 2: held-out exemplars; 3: checksum, phases under way
MARK = b"sha256:"  # the comment of the zip archive is this and 64 hex digits
SEAL_BYTES = len(MARK) + 64


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


def write_json(path: Path, value: Any) -> None:
    """Write `value`, unless the file holds it already."""
    write_if_new(path, (json.dumps(value, indent=1) + "\n").encode())


def write_if_new(path: Path, data: bytes) -> None:
    """Write `data`, unless the file holds it already."""
    if not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values, with a checksum; the file that was there is kept as `keep`, if given.

    The file is what torch.save writes, a zip archive whose comment says "sha256:" and the SHA-256 of the archive
    without that comment: torch.load reads it, too.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    atomic_write(path, sealed(buffer.getvalue()), keep)


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment -> the same with its checksum as the comment. Its last two bytes are the length
    of the comment."""
    seal = MARK + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + SEAL_BYTES.to_bytes(2, "little") + seal


def unsealed(data: bytes) -> bytes | None:
    """What `sealed` was given, or None where the checksum is missing or wrong."""
    archive = data[: -SEAL_BYTES - 2] + bytes(2)
    return archive if sealed(archive) == data else None


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote; rank 0 does, for all processes. Runs no code from the file.

    Raises:
        DamagedError: if the checksum is wrong.
        ValueError: if the file is of another format version, or something else with a checksum that is right.
        OSError: if it cannot be read.
    """
    return parsed(path, path.read_bytes() if world() == 1 else bytes_from_main(path.read_bytes), device)


def load_alone(path: Path) -> dict[str, Any]:
    """As `load`, onto the CPU, for this process alone."""
    return parsed(path, path.read_bytes(), torch.device("cpu"))


def parsed(path: Path, data: bytes, device: torch.device) -> dict[str, Any]:
    """What `save` was given when it wrote `data` to `path`; raises as `load`."""
    archive = unsealed(data)
    if archive is None:
        version = version_of(data)
        if version in (None, FORMAT):
            raise DamagedError(f"{path}: damaged, or no checkpoint of this program (its checksum is not right)")
    else:
        try:
            state = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
            version = state["format"]
        except Exception as error:  # torch.load promises no closed list of errors
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: cannot be read, though its checksum is right ({reason})") from error
    if version != FORMAT:
        raise ValueError(f"{path}: checkpoint format {version}, this version reads format {FORMAT}")
    return state


def version_of(data: bytes) -> int | None:
    """The format version that a file without a checksum claims to have; None where it cannot be told."""
    try:
        return int(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["format"])
    except Exception:  # torch.load promises no closed list of errors
        return None
