"""Reads pickles from outside without importing or running anything that they name.

A pickle tells the reader what to import, call and store. Here every name is looked up in a list and gets a stand-in of
ours; those outside the list are refused. numpy's own functions would let a crafted file build arrays of object pointers
over bytes of its choice, so arrays get stand-ins as well.
"""

import io
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mnemonics.engine.pickle_scan import PickleError, scan

NUMBERS = re.compile("[biuf][0-9]{1,2}")  # numpy's codes for truth values, whole numbers and floats


class Fixed:
    """Base of what names stand for: no pickle sets its state, so that none changes it for the next one."""

    def __setstate__(self, state: Any) -> None:
        raise PickleError(f"refused: it sets the state of a {type(self).__name__}")


class Function(Fixed):
    """A function that a pickle may call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class PickledDtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: str, *_: object) -> None:
        if type(code) is not str or not NUMBERS.fullmatch(code):
            raise PickleError(f"refused: an array of type {described(code)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """Stand-in for an array: empty until the unpickler hands it its content."""

    array = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        content = latin1(content)
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")
        if max(self.array.shape, default=0) > len(content):
            raise PickleError("damaged: an array of nothing, many times over")


def array_from_buffer(content: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: str) -> PickledArray:
    pickled = PickledArray()
    pickled.__setstate__((1, shape, dtype, order == "F", content))
    return pickled


def latin1(content: bytes | str, *_: object) -> bytes:
    """Bytes, which are text where Python 2 or an old protocol wrote them."""
    return content.encode("latin1") if isinstance(content, str) else content


def number(dtype: PickledDtype, content: bytes | str) -> int | float:
    return np.frombuffer(latin1(content), dtype.dtype)[0].item()


ARRAYS = {"numpy.ndarray": None, "numpy.dtype": Function(PickledDtype), "_codecs.encode": Function(latin1)}
for package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    ARRAYS[f"{package}.multiarray._reconstruct"] = Function(lambda *_: PickledArray())
    ARRAYS[f"{package}.multiarray.scalar"] = Function(number)
    ARRAYS[f"{package}.numeric._frombuffer"] = Function(array_from_buffer)


class Reader(pickle.Unpickler):
    """Loads the pickle that begins at `start`; it ends at `end`."""

    names: Mapping[str, Any] = ARRAYS  # what a pickle may mention, and what that stands for

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data, self.start = data, start
        super().__init__(io.BytesIO(data[start:]), encoding="latin1")

    def load(self) -> Any:
        """The object in the pickle, which is looked at before. Raises PickleError."""
        try:
            self.end = scan(self.data, self.start)
            return super().load()
        except PickleError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything
            raise PickleError(f"truncated or damaged ({type(error).__name__}: {str(error)[:200]})") from error

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.names:
            raise PickleError(f"refused: it asks for {full[:100]!r}, which is not on the list of known names")
        return self.names[full]


def described(value: Any) -> str:
    """For messages: a short text for any object of a pickle. Written out, one that holds itself many times over would
    fill the memory."""
    parts = value if type(value) is tuple else (value,)
    if all(type(x) in (str, float, bool, type(None)) or (type(x) is int and abs(x) < 2**64) for x in parts):
        return repr(value)[:100]
    return f"a {type(value).__name__}"
