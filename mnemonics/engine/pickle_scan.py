"""Looks at a pickle before anyone loads it: what would fill the memory or overflow the stack is refused.

A pickle is a program for a stack machine, and Python's unpicklers follow it wherever it leads: ten bytes can make them
take 34 GB of memory, and a hash of tuples in tuples in tuples ends the process. `scan` goes through the operations once
and follows only how large and how deeply nested the objects would be. What a pickle may import or call is up to whoever
loads it then.
"""

import io
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

DEEPEST = 1000  # tuples in tuples, and open marks
FREE_COPIES = 10**6  # items and bytes that a pickle may have copied besides a few times its own size
UNNEEDED = frozenset("POP POP_MARK DUP INST OBJ NEWOBJ_EX PERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER".split())
CHANGES = frozenset("APPEND APPENDS SETITEM SETITEMS ADDITEMS BUILD".split())  # of the first object that they take


class PickleError(Exception):
    """What is wrong with a file; whoever catches it puts the file's name before it."""


@dataclass(slots=True)
class Item:
    """What is known of an object on the stack."""

    kind: str  # "value": a text, a number, ...; "name": a name or what is stored outside; "object": all others
    depth: int  # of tuples in tuples
    size: int  # characters, bytes or items
    parts: tuple["Item", ...] = ()  # of a tuple

    @property
    def size_with_parts(self) -> int:
        return self.size + sum(part.size for part in self.parts)


def scan(data: bytes, start: int = 0) -> int:
    """Where the pickle that begins at `start` ends. Raises PickleError for one that had better not be loaded, and
    nearly anything for a damaged one."""
    file = io.BytesIO(data)
    file.seek(start)
    stack: list[Item] = []
    marks: list[int] = []
    memo: dict[int, Item] = {}
    copied = 0
    for count, (operation, argument, position) in enumerate(pickletools.genops(file)):
        name = operation.name
        if name in UNNEEDED or operation.proto > 5 or (name == "PROTO" and count > 0):
            raise PickleError(f"refused: the pickle operation {name}, which no such file needs")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("PUT") or name == "MEMOIZE":
            number = len(memo) if argument is None else argument
            if number > count:  # a reader makes room for as many
                raise PickleError(f"refused: memo number {number} after {count} operations")
            memo[number] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        else:
            taken = take(operation, stack, marks)
            refuse_odd_call(name, taken)
            if name in ("REDUCE", "BUILD"):  # a function or an object is given something, and may copy it
                copied += taken[1].size_with_parts
            if operation.stack_after:
                stack.append(result(name, argument, taken))
        if max(len(marks), stack[-1].depth if stack else 0) > DEEPEST:
            raise PickleError(f"refused: nested more than {DEEPEST} times")
        if copied > FREE_COPIES + 4 * (position - start):
            raise PickleError("refused: it has the same things copied again and again")
    return file.tell()


def take(operation: pickletools.OpcodeInfo, stack: list[Item], marks: list[int]) -> list[Item]:
    """What an operation takes off the stack: some objects, or all since the last mark and maybe one below it."""
    wanted = operation.stack_before
    if pickletools.markobject in wanted:
        first = marks.pop() - wanted.index(pickletools.markobject)
    else:
        first = len(stack) - len(wanted)
    if first < 0:
        raise IndexError("the stack runs empty")
    taken, stack[first:] = stack[first:], []
    return taken


def refuse_odd_call(name: str, taken: list[Item]) -> None:
    """Raises PickleError where something is called that is no name, or where the key of something stored outside the
    pickle holds lists or tuples: PyTorch writes these out in its messages, and that can be 2**70 characters."""
    if name in ("REDUCE", "NEWOBJ") and taken[0].kind != "name":
        raise PickleError("refused: it calls something that is no name")
    if name == "BINPERSID" and any(part.kind == "object" for part in taken[0].parts):
        raise PickleError("refused: it refers to something unknown outside the pickle")


def result(name: str, argument: Any, taken: list[Item]) -> Item:
    """What an operation leaves on the stack."""
    if name in CHANGES:
        taken[0].size += len(taken) - 1  # the same object: wherever it is referred to, it has grown
        return taken[0]
    depth = max((item.depth for item in taken), default=0)
    if name in ("GLOBAL", "STACK_GLOBAL", "BINPERSID"):
        return Item("name", depth, 0)
    if name.startswith("TUPLE"):
        return Item("object", depth + 1, len(taken), tuple(taken))
    if name == "REDUCE":  # nothing larger than what the function was given
        return Item("object", depth, taken[1].size_with_parts)
    if taken or name.startswith("EMPTY"):
        return Item("object", depth, len(taken))
    return Item("value", 0, len(argument) if isinstance(argument, str | bytes | bytearray) else 0)


def open_archive(data: bytes) -> tuple[zipfile.ZipFile, str]:
    """The zip archive that torch.save wrote, and the name of the pickle in it, "<folder>/data.pkl".

    Raises:
        PickleError: for another archive; where something is compressed, which could be of any size; and where its files
            overlap, so that they would be larger than it is.
        Exception: as zipfile does, for a damaged one.
    """
    if not data.startswith(b"PK\x03\x04"):  # zipfile would look for an archive behind something else
        raise PickleError("not a zip archive")
    archive = zipfile.ZipFile(io.BytesIO(data))
    pickles = [name for name in archive.namelist() if name.lower().endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].partition("/")[2] != "data.pkl":
        raise PickleError("a zip archive, but not one that torch.save wrote")
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"refused: {info.filename} is compressed, which torch.save never does")
    if sum(info.file_size for info in archive.infolist()) > len(data):
        raise PickleError("refused: its files overlap, so that they would be larger than it is")
    return archive, pickles[0]
