"""Reads checkpoints of the authors' code: files that `torch.save(module)` wrote, in both of its formats.

Nothing in them is imported or run. `read_module` gives what a file says as inert records; `networks.py` fills our
networks from them.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mnemonics.data.pickles import PickledArray, PickleError, Reader, described
from mnemonics.engine.errors import UsageError
from mnemonics.engine.pickle_scan import open_archive
from mnemonics.legacy.records import LegacyError, ModuleRecord, TorchReader

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file of the older format starts with
Read = TypeVar("Read")


def read_module(path: str | Path) -> ModuleRecord:
    """What a file that `torch.save(module)` wrote says.

    Raises:
        UsageError: for a file that is missing, empty, truncated, no such file at all, or asks for a name that is not on
            the list of known ones.
    """
    return reading(path, module_of)


def read_order(path: str | Path) -> tuple[int, ...]:
    """The class order in a pickle: order[label] = class id, from a numpy array or a list of whole numbers.

    Raises:
        UsageError: as `read_module`, and for anything that is not a permutation of 0..n-1.
    """
    return reading(path, order_of)


def reading(path: str | Path, parse: Callable[[bytes], Read]) -> Read:
    """`parse` of the content of the file; what is wrong with it as one line that names the file."""
    try:
        data = Path(path).read_bytes()
        refuse_what_is_no_pickle(data)
        return parse(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except PickleError as error:
        raise UsageError(f"{path}: {error}") from error


def refuse_what_is_no_pickle(data: bytes) -> None:
    """Raises LegacyError for an empty file, and for the HTML page that servers send instead of a file."""
    if not data:
        raise LegacyError("the file is empty")
    title = html_title(data)
    if title is not None:
        raise LegacyError(f"an HTML page{title}, not a checkpoint: the download failed; get the file again")


def html_title(start: bytes) -> str | None:
    """For the start of an HTML page its title, as text to go after "an HTML page"; None for anything else."""
    text = start[:4096].decode("latin1").lstrip("\ufeffï»¿ \t\r\n").lower()
    if not text.startswith(("<!doctype html", "<html", "<head", "<!--")):
        return None
    found = re.search(r"<title[^>]*>([^<]*)", start[:4096].decode("utf-8", "replace"), re.IGNORECASE)
    return f" ({' '.join(found[1].split())!r})" if found and found[1].strip() else ""


def module_of(data: bytes) -> ModuleRecord:
    root = read_zip(data) if data.startswith(b"PK") else read_old_format(data)
    if not isinstance(root, ModuleRecord):
        raise LegacyError(f"holds a {type(root).__name__}, not a network saved whole")
    return root


def order_of(data: bytes) -> tuple[int, ...]:
    order = Reader(data).load()
    if isinstance(order, PickledArray) and order.array.ndim == 1:
        order = order.array.tolist()
    is_list = type(order) in (list, tuple) and all(type(class_id) is int for class_id in order)
    if not is_list or sorted(order) != list(range(len(order))):
        raise LegacyError("holds no class order: needed is every class id from 0 on exactly once")
    return tuple(order)


def read_zip(data: bytes) -> Any:
    """The object in a file of the newer format: a zip archive with data.pkl and a file per storage."""
    try:
        archive, name = open_archive(data)
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            check_byte_order(archive.read(f"{folder}byteorder") == b"little")
        reader = TorchReader(archive.read(name), 0, len(data))
        root = reader.load()
        for key in reader.storages:
            reader.fill(key, archive.read(f"{folder}data/{key}"))
    except PickleError:
        raise
    except Exception as error:  # zipfile promises no closed list of errors
        raise LegacyError(f"truncated or damaged ({str(error)[:200]})") from error
    return root


def check_byte_order(little_endian: bool) -> None:
    if not little_endian or sys.byteorder != "little":
        raise LegacyError("written on, or read on, a machine with big-endian numbers: not supported")


def read_old_format(data: bytes) -> Any:
    """The object in a file of the older format: three pickles that say which format it is, the object's, one with the
    storages' keys, then for each storage its number of elements (int64) and its numbers."""
    try:
        magic, position = next_object(data, 0)
    except PickleError:
        magic = None
    if magic != MAGIC:
        raise LegacyError("not a file that torch.save wrote")
    protocol, position = next_object(data, position)
    system, position = next_object(data, position)
    if protocol != PROTOCOL or type(system) is not dict:
        raise LegacyError(f"protocol {described(protocol)} of torch.save, known is {PROTOCOL}")
    check_byte_order(system.get("little_endian") is True)
    reader = TorchReader(data, position, len(data))
    root = reader.load()
    keys, position = next_object(data, reader.end)
    if type(keys) is not list or not all(type(key) is str for key in keys) or set(keys) != reader.storages.keys():
        raise LegacyError("damaged: it stores the numbers of other tensors")
    for key in keys:
        storage, start = reader.storages[key], position + 8
        if int.from_bytes(data[position:start], "little") != storage.numel():
            raise LegacyError("truncated or damaged: the size of a tensor is missing or another one")
        position = start + storage.nbytes
        reader.fill(key, data[start:position])
    return root


def next_object(data: bytes, start: int) -> tuple[Any, int]:
    """The object whose pickle begins at `start`, and where that ends."""
    reader = Reader(data, start)
    return reader.load(), reader.end
