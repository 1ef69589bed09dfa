"""What stands for the objects in a pickle of a PyTorch module: plain records, without behaviour."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnemonics.data.pickles import PickleError, described

LARGEST, MOST_AXES = 2**48, 8  # of a tensor in such a file: of its numbers, sizes and strides; of its axes


class LegacyError(PickleError):
    """What is wrong with a file that PyTorch wrote; whoever catches it puts the file's name before it."""


@dataclass
class Storage:
    """A block of numbers, whichever device it was on; `content`, a 1-d tensor, is None until it was read."""

    dtype: torch.dtype
    numel: int
    content: Tensor | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def fill(self, raw: bytes) -> None:
        """Take over the numbers, little-endian. Raises LegacyError where there are too few or too many."""
        if len(raw) != self.bytes:
            raise LegacyError(f"truncated or damaged: {len(raw)} of {self.bytes} bytes of a tensor")
        empty = torch.empty(0, dtype=self.dtype)
        self.content = torch.frombuffer(bytearray(raw), dtype=self.dtype) if raw else empty


@dataclass(frozen=True)
class StorageView:
    """Elements `start` to `start + numel` of a storage."""

    storage: Storage
    start: int
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor whose storage may not have been read yet; offset and stride in elements."""

    view: StorageView
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor, on the CPU. It shares the numbers with its storage: copies could be of many times the size of the
        file. Raises LegacyError where the shape does not fit the storage."""
        numbers = (self.offset, *self.size, *self.stride)
        if (
            not len(self.size) == len(self.stride) <= MOST_AXES
            or any(type(n) is not int or not 0 <= n < LARGEST for n in numbers)
            or math.prod(max(n, 1) for n in self.size) >= LARGEST
        ):
            raise LegacyError(f"damaged: a tensor with size {described(self.size)} and stride {described(self.stride)}")
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if count > self.view.numel or (count and last >= self.view.numel):
            raise LegacyError(f"damaged: a tensor of size {self.size} does not fit its {self.view.numel} numbers")
        if count == 0:
            return torch.empty(self.size, dtype=self.view.storage.dtype)
        if self.view.storage.content is None:
            raise LegacyError("truncated or damaged: the numbers of a tensor are missing")
        return self.view.storage.content.as_strided(self.size, self.stride, self.view.start + self.offset)


@dataclass
class ModuleRecord:
    """What a file says of one module. `attributes` are all other fields of the object, plain values among them."""

    class_name: str  # with the module path, e.g. "torch.nn.modules.conv.Conv2d"
    parameters: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    children: dict[str, "ModuleRecord | None"] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def set_state(self, state: Any) -> None:
        """Take over the state of the pickled object."""
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise LegacyError(f"damaged: {self.class_name} without names for what it holds")
        state = dict(state)
        kinds = {"_parameters": TensorRecord, "_buffers": TensorRecord, "_modules": ModuleRecord}
        tables = [state.pop(name, {}) for name in kinds]
        for table, kind in zip(tables, kinds.values(), strict=True):
            if type(table) is not dict or not all(
                type(name) is str and isinstance(x, kind | None) for name, x in table.items()
            ):
                raise LegacyError(f"damaged: {self.class_name} holds something else than {kind.__name__}s")
        self.parameters, self.buffers, self.children = map(dict, tables)
        self.attributes = state

    def read_tensors(self) -> None:
        """Replace the tensor records, here and below, now that all storages are there."""
        waiting, done = [self], set()
        while waiting:
            record = waiting.pop()
            if id(record) in done:
                continue
            done.add(id(record))
            for table in (record.parameters, record.buffers):
                table.update({name: x.tensor() for name, x in table.items() if x is not None})
            waiting += [child for child in record.children.values() if child is not None]
