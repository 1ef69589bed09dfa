"""Reads checkpoints of the authors' code: files that `torch.save(module)` wrote, in both of its formats.

Nothing in them is imported or run. What a file says of a network becomes inert records, from which `networks.py` fills
ours; numbers stay as they are, bit for bit.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from mnemonics.data.pickles import ARRAYS, Fixed, Function, PickledArray, PickleError, Reader
from mnemonics.engine.errors import UsageError
from mnemonics.engine.pickle_scan import open_archive, scan

OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # what a file of the older format starts with
Read = TypeVar("Read")


def reading(path: Path, parse: Callable[[bytes], Read]) -> Read:
    """`parse` of the content of a file.

    Raises:
        UsageError: for a file that is missing, empty, truncated, no such file at all, or asks for a name that is not on
            the list of known ones; and where `parse` raises PickleError.
    """
    try:
        data = path.read_bytes()
        if not data:
            raise PickleError("the file is empty")
        if data[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise PickleError("an HTML page, not a checkpoint: the download failed; get the file again")
        return parse(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except PickleError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # whatever damaged files lead to; what they hold could be too long to be written out
        raise UsageError(f"{path}: truncated or damaged ({type(error).__name__})") from error


def order_of(data: bytes) -> tuple[int, ...]:
    """The class order in a pickle: order[label] = class id, from a numpy array or a list of whole numbers. Raises
    PickleError for anything that is not a permutation of 0..n-1, and others where the file is damaged."""
    order = Reader(data).load()
    if isinstance(order, PickledArray):
        order = order.array.tolist()
    if not all(type(class_id) is int for class_id in order) or sorted(order) != list(range(len(order))):
        raise PickleError("holds no class order: needed is every class id from 0 on exactly once")
    return tuple(order)


@dataclass(eq=False)
class Numbers(Fixed):
    """A storage or a tensor, on the CPU. A pickle may not have the tensor itself, which it could change."""

    tensor: Tensor


class ModuleRecord:
    """What a file says of one module. `state` is all that the object held, by name."""

    class_name = ""  # with the module path, e.g. "torch.nn.modules.conv.Conv2d"
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    @property
    def children(self) -> dict[str, "ModuleRecord"]:
        return {name: child for name, child in self.state["_modules"].items() if child is not None}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        numbers = self.state["_parameters"] | self.state["_buffers"]
        return {name: value.tensor for name, value in numbers.items() if value is not None}

    def parts(self, path: str = "") -> Iterator[tuple[str, "ModuleRecord"]]:
        """This module and all in it with their paths, e.g. "layer1.0.conv1."; its own is ""."""
        yield path, self
        for name, child in self.children.items():
            yield from child.parts(path + name + ".")


def rebuild_tensor(storage: Numbers, offset: int, size: tuple, stride: tuple, *_: object) -> Numbers:
    """A tensor that shares its numbers with the storage: copies could be of many times the size of the file."""
    if not type(size) is type(stride) is tuple or not all(type(n) is int for n in (offset, *size, *stride)):
        raise PickleError("damaged: a tensor without a shape")
    tensor = storage.tensor.as_strided(size, stride, offset)  # raises where that is not inside the storage
    if not 0 < math.prod(size) <= storage.tensor.numel():
        raise PickleError("damaged: a tensor of nothing, or of the same numbers many times over")
    return Numbers(tensor)


STORAGES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in (("Float", torch.float32), ("Long", torch.int64))
}
MODULES = (
    "models.modified_resnet.ResNet models.modified_resnet.BasicBlock "
    "models.modified_resnet_cifar.ResNet models.modified_resnet_cifar.BasicBlock "
    "models.modified_resnetmtl.ResNetMtl models.modified_resnetmtl.BasicBlockMtl "
    "models.modified_resnetmtl_cifar.ResNetMtl models.modified_resnetmtl_cifar.BasicBlockMtl "
    "models.modified_linear.CosineLinear models.modified_linear.SplitCosineLinear "
    "utils.conv2d_mtl.Conv2dMtl utils.incremental.conv2d_mtl.Conv2dMtl "
    "torch.nn.modules.conv.Conv2d torch.nn.modules.batchnorm.BatchNorm2d torch.nn.modules.activation.ReLU "
    "torch.nn.modules.container.Sequential "
    "torch.nn.modules.pooling.AvgPool2d torch.nn.modules.pooling.MaxPool2d".split()
)
FUNCTIONS = {
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data, *_: data,  # PyTorch 0.4.0
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,  # in every module up to PyTorch 1.3
    "collections.OrderedDict": dict,
    "__builtin__.set": set,
}


class TorchReader(Reader):
    """Loads one pickle of PyTorch. Its storages, by their key in the file, are to be filled afterwards."""

    names = (
        ARRAYS
        | STORAGES
        | {name: type("Record", (ModuleRecord,), {"class_name": name}) for name in MODULES}
        | {name: Function(function) for name, function in FUNCTIONS.items()}
    )

    def __init__(self, data: bytes, start: int, file_size: int) -> None:
        super().__init__(data, start)
        self.storages: dict[str, Tensor] = {}
        self.room = file_size  # bytes that further storages may have

    def persistent_load(self, what: tuple) -> Any:
        """What is stored outside the pickle: a class, whose source code comes along and is dropped here, or a storage,
        from whichever device."""
        if what[0] == "module":
            return what[1]
        kind, dtype, key, _, count, *view = what
        if kind != "storage" or type(key) is not str or view not in ([], [None]):
            raise PickleError("damaged: it refers to something unknown outside the pickle")
        if key not in self.storages:
            self.room -= count * dtype.itemsize
            if self.room < 0:
                raise PickleError("truncated or damaged: the numbers of its tensors are not all there")
            self.storages[key] = torch.empty(count, dtype=dtype)
        return Numbers(self.storages[key])


def fill(storage: Tensor, raw: bytes) -> None:
    """Give a storage its numbers, which are stored as they are in memory."""
    if len(raw) != storage.nbytes:
        raise PickleError(f"truncated or damaged: {len(raw)} of {storage.nbytes} bytes of a tensor")
    storage.copy_(torch.frombuffer(bytearray(raw), dtype=storage.dtype))


def module_of(data: bytes) -> ModuleRecord:
    """The network in a file. Raises PickleError, and others where the file is damaged."""
    if data.startswith(b"PK"):
        root = read_zip(data)
    elif data.startswith(OLD_FORMAT):
        root = read_old_format(data)
    else:
        raise PickleError("not a file that torch.save wrote")
    if not isinstance(root, ModuleRecord):
        raise PickleError(f"holds a {type(root).__name__}, not a network saved whole")
    return root


def read_zip(data: bytes) -> Any:
    """The object in a file of the newer format: a zip archive with data.pkl and a file per storage."""
    archive, name = open_archive(data)
    reader = TorchReader(archive.read(name), 0, len(data))
    root = reader.load()
    for key, storage in reader.storages.items():
        fill(storage, archive.read(f"{name.removesuffix('data.pkl')}data/{key}"))
    return root


def read_old_format(data: bytes) -> Any:
    """The object in a file of the older format: three pickles that say which format it is, the object's, one with the
    storages' keys, sorted, then for each storage its number of elements (8 bytes) and its numbers."""
    start = scan(data, scan(data, len(OLD_FORMAT)))
    reader = TorchReader(data, start, len(data))
    root, table = reader.load(), Reader(data, reader.end)
    keys, file = table.load(), io.BytesIO(data)
    if keys != sorted(reader.storages):
        raise PickleError("damaged: it stores the numbers of other tensors")
    file.seek(table.end)
    for key in keys:
        file.read(8)
        fill(reader.storages[key], file.read(reader.storages[key].nbytes))
    return root
