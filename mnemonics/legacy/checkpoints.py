"""Reads checkpoints of the authors' code: files that `torch.save(module)` wrote, in both of its formats.

Nothing in them is imported or run (`legacy_pickle.py`). `read_module` gives what a file says as inert records;
`legacy_networks.py` fills our networks from them.
"""

import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mnemonics.data.pickles import Machine, Name, PickledArray, PickleError, described
from mnemonics.engine.errors import UsageError
from mnemonics.legacy.pickles import STORAGES, TorchMachine
from mnemonics.legacy.records import LARGEST, LegacyError, ModuleRecord, Storage, StorageView

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file of the older format starts with
ZIP_START = b"PK\x03\x04"
Read = TypeVar("Read")


def read_module(path: str | Path) -> ModuleRecord:
    """What a file that `torch.save(module)` wrote says; tensors are on the CPU, wherever they were.

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
    root = read_zip(data) if data.startswith(ZIP_START) else read_old_format(data)
    if not isinstance(root, ModuleRecord):
        raise LegacyError(f"holds a {type(root).__name__}, not a network saved whole")
    root.read_tensors()
    return root


def order_of(data: bytes) -> tuple[int, ...]:
    order = Machine().run(io.BytesIO(data))
    if isinstance(order, PickledArray) and order.array.ndim == 1:
        order = order.array.tolist()
    if type(order) not in (list, tuple) or not all(type(class_id) is int for class_id in order):
        order = None
    if order is None or sorted(order) != list(range(len(order))):
        raise LegacyError("holds no class order: needed is every class id from 0 on exactly once")
    return tuple(order)


class Storages:
    """The storages that a pickle refers to, by their key in the file."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def persistent(self, what: Any) -> Any:
        """What a persistent id of PyTorch stands for: a class, whose source code comes along and is dropped here, or
        (a view of) a storage, from whichever device."""
        if type(what) is not tuple or len(what) < 2:
            raise LegacyError("damaged: it refers to something unknown outside the pickle")
        if what[0] == "module" and isinstance(what[1], Name):
            return what[1]
        if what[0] != "storage" or len(what) not in (5, 6) or not isinstance(what[1], Name):
            raise LegacyError("damaged: it refers to something unknown outside the pickle")
        _, kind, key, _, numel, *view = what
        if kind.full not in STORAGES or type(key) is not str or type(numel) is not int or not 0 <= numel < LARGEST:
            raise LegacyError("damaged: a storage without type, key or size")
        storage = self.by_key.setdefault(key, Storage(STORAGES[kind.full], numel))
        if not view or view[0] is None:
            return StorageView(storage, 0, storage.numel)
        _, start, count = view[0]
        if type(start) is not int or type(count) is not int or not 0 <= start <= start + count <= storage.numel:
            raise LegacyError("damaged: a view that is not inside its storage")
        return StorageView(storage, start, count)


def read_zip(data: bytes) -> Any:
    """The object in a file of the newer format: a zip archive with data.pkl and a file per storage."""
    storages = Storages()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(names) != 1:
                raise LegacyError("a zip archive, but not one that torch.save wrote")
            folder = names[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist():
                check_byte_order(stored(archive, f"{folder}byteorder") == b"little")
            root = TorchMachine(storages.persistent).run(io.BytesIO(stored(archive, names[0])))
            files = {f"{folder}data/{key}": storage for key, storage in storages.by_key.items()}
            if sum(archive.getinfo(name).compress_size for name in files) > len(data):
                raise LegacyError("refused: its files overlap, so that they would be larger than it is")
            for name, storage in files.items():
                storage.fill(stored(archive, name))
    except PickleError:
        raise
    except Exception as error:  # zipfile promises no closed list of errors
        raise LegacyError(f"truncated or damaged ({error})") from error
    return root


def stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in the archive. PyTorch compresses nothing; what is compressed could be of any size."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise LegacyError(f"refused: {name} is compressed, which torch.save never does")
    return archive.read(name)


def check_byte_order(little_endian: bool) -> None:
    if not little_endian or sys.byteorder != "little":
        raise LegacyError("written on, or read on, a machine with big-endian numbers: not supported")


def read_old_format(data: bytes) -> Any:
    """The object in a file of the older format: three pickles that say which format it is, the object's, one with the
    storages' keys, then for each storage its number of elements (int64) and its numbers."""
    file, storages = io.BytesIO(data), Storages()
    try:
        known = Machine().run(file) == MAGIC
    except PickleError:
        known = False
    if not known:
        raise LegacyError("not a file that torch.save wrote")
    protocol, system = (Machine().run(file) for _ in range(2))
    if protocol != PROTOCOL or type(system) is not dict:
        raise LegacyError(f"protocol {described(protocol)} of torch.save, known is {PROTOCOL}")
    check_byte_order(system.get("little_endian") is True)
    root = TorchMachine(storages.persistent).run(file)
    keys = Machine().run(file)
    if type(keys) is not list or any(type(key) is not str or key not in storages.by_key for key in keys):
        raise LegacyError("damaged: it stores numbers of no tensor")
    for key in keys:
        storage = storages.by_key[key]
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise LegacyError("truncated or damaged: the size of a tensor is missing or another one")
        storage.fill(file.read(storage.bytes))
    return root
