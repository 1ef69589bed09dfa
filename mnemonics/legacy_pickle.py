"""Carries out pickles of whole PyTorch modules without importing or running anything that they name.

A pickle is a program: it tells the reader what to import, call and store. Here it is carried out on stand-ins: every
name is looked up in the lists below, those outside are refused, and modules become records.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from mnemonics.data.cifar100 import PickledArray, PickledDtype, latin1_bytes
from mnemonics.legacy_records import LegacyError, ModuleRecord, StorageView, TensorRecord

DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGES = {f"{module}.{k}Storage": dtype for module in ("torch", "torch.cuda") for k, dtype in DTYPES.items()}
MODULES = frozenset(
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


@dataclass(frozen=True)
class Name:
    """A name of the lists below, as a pickle mentions it: a text, not the thing."""

    full: str


def rebuild_tensor(view: StorageView, offset: int, size: tuple, stride: tuple, *_: object) -> TensorRecord:
    if not isinstance(view, StorageView):
        raise LegacyError("damaged: a tensor without a storage")
    return TensorRecord(view, offset, tuple(size), tuple(stride))


def rebuild_parameter(data: TensorRecord, *_: object) -> TensorRecord:
    return data


def numpy_scalar(dtype: PickledDtype, content: bytes | str) -> int | float:
    content = content.encode("latin1") if isinstance(content, str) else content  # str where Python 2 wrote it
    return np.frombuffer(content, dtype.dtype)[0].item()


FUNCTIONS: dict[str, Callable[..., Any]] = {  # what a pickle may call: only these stand-ins are ever run
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch.nn.parameter.Parameter": rebuild_parameter,  # PyTorch 0.4.0
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,  # in every module up to PyTorch 1.3
    "collections.OrderedDict": lambda items=(): dict(items),
    "builtins.set": lambda items=(): set(items),
    "__builtin__.set": lambda items=(): set(items),
    "_codecs.encode": latin1_bytes,
    "numpy.dtype": PickledDtype,
}
for package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    FUNCTIONS[f"{package}.multiarray._reconstruct"] = PickledArray
    FUNCTIONS[f"{package}.multiarray.scalar"] = numpy_scalar
    FUNCTIONS[f"{package}.numeric._frombuffer"] = PickledArray.from_buffer
ALLOWED = MODULES | FUNCTIONS.keys() | STORAGES.keys() | {"numpy.ndarray"}


LITERALS = frozenset(  # operations that push their argument
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MEMO_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
MEMO_GET = ("GET", "BINGET", "LONG_BINGET")
NOTHING = ("PROTO", "FRAME", "STOP")


class Machine:
    """Carries out one pickle: a stack, a memo, and the operations that PyTorch, numpy and plain values need.

    `persistent` is given what the pickle says of things stored outside it, as a tuple: classes and storages.
    """

    def __init__(self, persistent: Callable[[tuple], Any]):
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """The object of the pickle that `file` is at; leaves `file` right after it. Raises LegacyError."""
        try:
            for operation, argument, _ in pickletools.genops(file):
                self.step(operation.name, argument)
            return self.stack.pop()
        except LegacyError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything, from IndexError to MemoryError
            raise LegacyError(f"truncated or damaged ({type(error).__name__}: {error})") from error

    def step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack.append(tuple(self.pop(TUPLES[name])))
        elif name in MEMO_PUT:
            self.memo[argument] = self.stack[-1]
        elif name in MEMO_GET:
            self.stack.append(self.memo[argument])
        elif name not in NOTHING:
            operation = getattr(self, f"do_{name}", None)
            if operation is None:
                raise LegacyError(f"refused: the pickle operation {name}, which no file of PyTorch needs")
            operation(argument)

    def pop(self, count: int) -> list[Any]:
        """The `count` topmost objects, taken off the stack."""
        if len(self.stack) < count:
            raise LegacyError("truncated or damaged: the pickle's stack runs empty")
        split = len(self.stack) - count
        items, self.stack[split:] = self.stack[split:], []
        return items

    def pop_to_mark(self) -> list[Any]:
        """Everything since the last mark, taken off the stack."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        """The topmost object, which has to be a `kind`."""
        if type(self.stack[-1]) is not kind:
            raise LegacyError(f"damaged: a {type(self.stack[-1]).__name__} where a {kind.__name__} should be")
        return self.stack[-1]

    def do_MARK(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_POP(self, _: None) -> None:
        self.pop(1)

    def do_POP_MARK(self, _: None) -> None:
        self.pop_to_mark()

    def do_DUP(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_MEMOIZE(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_TUPLE(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def do_LIST(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(items)

    def do_DICT(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def do_FROZENSET(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(frozenset(items))

    def do_APPEND(self, _: None) -> None:
        (item,) = self.pop(1)
        self.top(list).append(item)

    def do_APPENDS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def do_ADDITEMS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(set).update(items)

    def do_SETITEM(self, _: None) -> None:
        key, value = self.pop(2)
        self.top(dict)[key] = value

    def do_SETITEMS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def do_GLOBAL(self, module_and_name: str) -> None:
        full = module_and_name.replace(" ", ".", 1)
        if full not in ALLOWED:
            raise LegacyError(f"refused: it asks for {full!r}, which is not on the list of known names")
        self.stack.append(Name(full))

    def do_STACK_GLOBAL(self, _: None) -> None:
        self.do_GLOBAL(" ".join(map(str, self.pop(2))))

    def do_BINPERSID(self, _: None) -> None:
        (what,) = self.pop(1)
        self.stack.append(self.persistent(what))

    def do_NEWOBJ(self, _: None) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, Name) or name.full not in MODULES or arguments != ():
            raise LegacyError(f"refused: it makes an object of {name}, which is no known module")
        self.stack.append(ModuleRecord(name.full))

    def do_REDUCE(self, _: None) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, Name) or name.full not in FUNCTIONS or type(arguments) is not tuple:
            raise LegacyError(f"refused: it calls {name}, which is no known function")
        self.stack.append(FUNCTIONS[name.full](*arguments))

    def do_BUILD(self, _: None) -> None:
        (state,) = self.pop(1)
        target = self.stack[-1]
        if isinstance(target, ModuleRecord):
            target.set_state(state)
        elif isinstance(target, PickledArray | PickledDtype):
            target.__setstate__(state)
        else:
            raise LegacyError(f"refused: it sets the state of a {type(target).__name__}")
