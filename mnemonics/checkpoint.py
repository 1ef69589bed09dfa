"""Run folders: files that appear whole or not at all, checkpoints that hold everything a resumed run needs."""

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from mnemonics.distributed import bytes_from_main, world

FORMAT = 2  # 2: held-out exemplars


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` so that after a crash at any instant `path` holds either all of it or what it held before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # there only if something above failed
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must reach the disk
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    atomic_write(path, buffer.getvalue())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote; rank 0 does, for all processes. Runs no code from the file.

    Raises:
        ValueError: if the file is of another format version.
    """
    source = path if world() == 1 else io.BytesIO(bytes_from_main(path.read_bytes))
    state = torch.load(source, map_location=device, weights_only=True)
    if state.get("format") != FORMAT:
        raise ValueError(f"{path}: checkpoint format {state.get('format')}, this version reads format {FORMAT}")
    return state
