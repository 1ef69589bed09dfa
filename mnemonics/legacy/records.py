"""Reads pickles of whole PyTorch modules: what they name becomes records, without behaviour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mnemonics.data.pickles import ARRAYS, Fixed, Function, PickleError, Reader, described

LARGEST, MOST_AXES = 2**48, 8  # of a tensor in such a file: of its numbers, sizes and strides; of its axes
MOST_PARTS = 1000  # of a network


class LegacyError(PickleError):
    """What is wrong with a file that PyTorch wrote; whoever catches it puts the file's name before it."""


@dataclass(eq=False)
class Numbers(Fixed):
    """A storage or a tensor, on the CPU. A pickle may not have the tensor itself, which it could change."""

    tensor: Tensor


class ModuleRecord:
    """What a file says of one module. `state` is all that the object held, by name."""

    class_name = ""  # with the module path, e.g. "torch.nn.modules.conv.Conv2d"
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise LegacyError(f"damaged: {self.class_name} without names for what it holds")
        self.state = state

    @property
    def children(self) -> dict[str, "ModuleRecord"]:
        return self.table("_modules", ModuleRecord)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        numbers = self.table("_parameters", Numbers) | self.table("_buffers", Numbers)
        return {name: value.tensor for name, value in numbers.items()}

    def table(self, name: str, kind: type) -> dict[str, Any]:
        """The entries of a table that are not None. Raises LegacyError where any is no `kind`."""
        table = self.state.get(name, {})
        if type(table) is dict and all(type(key) is str for key in table):
            present = {key: value for key, value in table.items() if value is not None}
            if all(isinstance(value, kind) for value in present.values()):
                return present
        raise LegacyError(f"damaged: {self.class_name} holds something else than {kind.__name__}s")

    def parts(self) -> dict[str, "ModuleRecord"]:
        """This module and all in it by their path, e.g. "layer1.0.conv1"; its own is "". Raises LegacyError."""
        parts, waiting = {"": self}, [("", self)]
        while waiting:
            path, parent = waiting.pop()
            children = {f"{path}.{name}".lstrip("."): child for name, child in parent.children.items()}
            parts |= children
            waiting += children.items()
            if len(parts) > MOST_PARTS:  # a crafted file can have a module hold itself
                raise LegacyError(f"damaged: a network of more than {MOST_PARTS} parts")
        return parts


def rebuild_tensor(storage: Numbers, offset: int, size: tuple, stride: tuple, *_: object) -> Numbers:
    """A tensor that shares its numbers with the storage: copies could be of many times the size of the file. Raises
    LegacyError where it is empty or not inside the storage."""
    if not isinstance(storage, Numbers) or type(size) is not tuple or type(stride) is not tuple:
        raise LegacyError("damaged: a tensor without a storage or a shape")
    count = storage.tensor.numel()
    if (
        not len(size) == len(stride) <= MOST_AXES
        or any(type(n) is not int or not 0 <= n < LARGEST for n in (offset, *size, *stride))
        or not 0 < math.prod(size) <= count
        or offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= count
    ):
        shape = f"size {described(size)} and stride {described(stride)}"
        raise LegacyError(f"damaged: a tensor of {shape} in {count} numbers")
    return Numbers(storage.tensor.as_strided(size, stride, offset))


def rebuild_parameter(data: Numbers, *_: object) -> Numbers:
    return data


KINDS = "Float Double Half Long Int Short Char Byte Bool".split()
DTYPES = "float32 float64 float16 int64 int32 int16 int8 uint8 bool".split()
STORAGES = {
    f"{module}.{kind}Storage": getattr(torch, dtype)
    for module in ("torch", "torch.cuda")
    for kind, dtype in zip(KINDS, DTYPES, strict=True)
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
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch.nn.parameter.Parameter": rebuild_parameter,  # PyTorch 0.4.0
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,  # in every module up to PyTorch 1.3
    "collections.OrderedDict": dict,
    "builtins.set": set,
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

    def persistent_load(self, what: Any) -> Any:
        """What is stored outside the pickle: a class, whose source code comes along and is dropped here, or a storage,
        from whichever device."""
        if type(what) is tuple and len(what) > 1 and what[0] == "module" and isinstance(what[1], type):
            return what[1]
        if type(what) is not tuple or len(what) not in (5, 6) or what[0] != "storage" or what[5:] not in ((), (None,)):
            raise LegacyError("damaged: it refers to something unknown outside the pickle")
        _, dtype, key, _, count = what[:5]
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int or count < 0:
            raise LegacyError("damaged: a storage without type, key or size")
        if key not in self.storages:
            self.room -= count * dtype.itemsize
            if self.room < 0:
                raise LegacyError("truncated or damaged: the numbers of its tensors are not all there")
            self.storages[key] = torch.empty(count, dtype=dtype)
        return Numbers(self.storages[key])

    def fill(self, key: str, raw: bytes) -> None:
        """Take over the numbers of a storage, little-endian. Raises LegacyError where it is not as many."""
        storage = self.storages[key]
        if len(raw) != storage.nbytes:
            raise LegacyError(f"truncated or damaged: {len(raw)} of {storage.nbytes} bytes of a tensor")
        if raw:
            storage.copy_(torch.frombuffer(bytearray(raw), dtype=storage.dtype))
