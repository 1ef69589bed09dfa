"""Carries out pickles from outside without importing or running anything that they name.

A pickle is a program: it tells the reader what to import, call and store. Here it is carried out on stand-ins: every
name is looked up in a list, those outside are refused. Python's own unpickler would not do, even with names refused: a
file of ten bytes can make it take 34 GB of memory, and one of a megabyte end the process.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

PLAIN = (str, bytes, int, float, bool, type(None))
FREE_COPIES = 10**6  # items and bytes that a pickle may have copied besides a few times its own size


class PickleError(Exception):
    """What is wrong with a file; whoever catches it puts the file's name before it."""


@dataclass(frozen=True)
class Name:
    """A name of the lists below, as a pickle mentions it: a text, not the thing."""

    full: str


# A pickled array asks for a handful of names in numpy. They get stand-ins that do just what a plain array needs, on any
# version of numpy: the real ones would let a crafted file build arrays of object pointers over bytes of its choice.


class PickledDtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: str, *_: object) -> None:
        if type(code) is not str:
            raise PickleError(f"refused: an array of type {described(code)}")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise PickleError(f"refused: an array of type {self.dtype}")

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """Stand-in for an array: empty until the unpickler hands it its content."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0, np.uint8)

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # str where Python 2 wrote it
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")

    @classmethod
    def from_buffer(cls, content: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: str) -> "PickledArray":
        pickled = cls()
        pickled.set_state((1, shape, dtype, order == "F", content))
        return pickled


def latin1_bytes(text: str, *_: object) -> bytes:
    return text.encode("latin1")


def numpy_scalar(dtype: PickledDtype, content: bytes | str) -> int | float:
    content = content.encode("latin1") if isinstance(content, str) else content  # str where Python 2 wrote it
    return np.frombuffer(content, dtype.dtype)[0].item()


ARRAYS: dict[str, Callable[..., Any]] = {"_codecs.encode": latin1_bytes, "numpy.dtype": PickledDtype}
for package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    ARRAYS[f"{package}.multiarray._reconstruct"] = PickledArray
    ARRAYS[f"{package}.multiarray.scalar"] = numpy_scalar
    ARRAYS[f"{package}.numeric._frombuffer"] = PickledArray.from_buffer

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
    """Carries out one pickle: a stack, a memo, and the operations that numpy arrays and plain values need."""

    functions: Mapping[str, Callable[..., Any]] = ARRAYS  # what a pickle may call: only these stand-ins are ever run
    names: frozenset[str] = frozenset({"numpy.ndarray"})  # what it may mention besides

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.position = 0  # in the file, in bytes
        self.copied = 0  # items and bytes

    def run(self, file: BinaryIO) -> Any:
        """The object of the pickle that `file` is at; leaves `file` right after it. Raises PickleError."""
        try:
            for operation, argument, position in pickletools.genops(file):
                self.position = position
                self.step(operation.name, argument)
            return self.stack.pop()
        except PickleError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything, from IndexError to MemoryError
            raise PickleError(f"truncated or damaged ({type(error).__name__}: {error})") from error

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
                raise PickleError(f"refused: the pickle operation {name}, which no such file needs")
            operation(argument)

    def pop(self, count: int) -> list[Any]:
        """The `count` topmost objects, taken off the stack."""
        if len(self.stack) < count:
            raise PickleError("truncated or damaged: the pickle's stack runs empty")
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
            raise PickleError(f"damaged: a {type(self.stack[-1]).__name__} where a {kind.__name__} should be")
        return self.stack[-1]

    def charge(self, values: Iterable[Any]) -> None:
        """Count what is about to be copied: else a file of some megabytes, which has its longest text or list copied
        again and again, would fill any memory."""
        self.copied += sum(len(value) for value in values if hasattr(value, "__len__"))
        if self.copied > FREE_COPIES + 4 * self.position:
            raise PickleError("refused: it has the same things copied again and again")

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
        self.stack.append(dict(zip(plain(items[::2]), items[1::2], strict=True)))

    def do_FROZENSET(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(frozenset(plain(items)))

    def do_APPEND(self, _: None) -> None:
        (item,) = self.pop(1)
        self.top(list).append(item)

    def do_APPENDS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def do_ADDITEMS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(set).update(plain(items))

    def do_SETITEM(self, _: None) -> None:
        key, value = self.pop(2)
        self.top(dict).update(zip(plain([key]), [value], strict=True))

    def do_SETITEMS(self, _: None) -> None:
        items = self.pop_to_mark()
        self.top(dict).update(zip(plain(items[::2]), items[1::2], strict=True))

    def do_GLOBAL(self, module_and_name: str) -> None:
        full = module_and_name.replace(" ", ".", 1)
        if full not in self.names and full not in self.functions:
            raise PickleError(f"refused: it asks for {described(full)}, which is not on the list of known names")
        self.stack.append(Name(full))

    def do_STACK_GLOBAL(self, _: None) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise PickleError("damaged: it asks for a name that is no text")
        self.do_GLOBAL(f"{module} {name}")

    def do_REDUCE(self, _: None) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, Name) or name.full not in self.functions or type(arguments) is not tuple:
            raise PickleError(f"refused: it calls {described(name)}, which is no known function")
        self.charge([arguments])
        self.charge(arguments)
        self.stack.append(self.functions[name.full](*arguments))

    def do_BUILD(self, _: None) -> None:
        (state,) = self.pop(1)
        self.charge([state])
        self.charge(state if type(state) is tuple else ())
        self.build(self.stack[-1], state)

    def build(self, target: Any, state: Any) -> None:
        """Set the state of an object."""
        if not isinstance(target, PickledArray | PickledDtype):
            raise PickleError(f"refused: it sets the state of a {type(target).__name__}")
        target.set_state(state)


def plain(keys: Iterable[Any]) -> list[Any]:
    """`keys` of a dictionary or members of a set, which are plain values: of tuples in tuples in tuples, Python cannot
    compute the hash without overflowing its stack. Raises PickleError."""
    keys = list(keys)
    if not all(type(key) in PLAIN for key in keys):
        raise PickleError("damaged: a dictionary or a set of something else than texts and numbers")
    return keys


def described(value: Any, inside: bool = False) -> str:
    """For messages: a short text for any object of a pickle. Written out, one that holds itself many times over would
    fill the memory."""
    if isinstance(value, Name):
        return value.full
    if type(value) in (str, bytes):
        return repr(value[:100])
    if type(value) in (float, bool, type(None)) or (type(value) is int and abs(value) < 2**64):
        return repr(value)
    if type(value) is tuple and len(value) <= 8 and not inside:
        return f"({', '.join(described(item, inside=True) for item in value)})"
    return f"a {type(value).__name__}"
