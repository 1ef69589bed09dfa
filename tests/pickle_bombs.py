"""Pickles that would fill the memory, overflow the stack or make endless messages. This file is run as a program with
two gigabytes of memory: it gives every bomb to every reader and prints the names of the bombs."""

import io
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from mnemonics.data.cifar import CIFAR, DataError, read_python_part
from mnemonics.engine.errors import UsageError
from mnemonics.engine.files import parsed
from mnemonics.legacy.checkpoints import OLD_FORMAT, order_of, reading
from mnemonics.legacy.networks import read_network


class InMemory:
    """What readers need of a path."""

    def __init__(self, data):
        self.read_bytes = lambda: data


def read_images(data):
    read_python_part(data, "file", CIFAR["cifar100"])


def read_theirs(data):
    read_network(InMemory(data))


def read_order(data):
    reading(InMemory(data), order_of)


def read_ours(pickled):
    """Read a checkpoint of ours whose pickle is this one."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    parsed(Path("c.pt"), target.getvalue(), torch.device("cpu"))


DEPTH = 10**5
NESTED = b"N" + b"\x85" * DEPTH
TEXT = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
LAUGHS = b"N" + b"q\x00h\x00\x86" * 70  # a pair of pairs of pairs: 2**70 when it is written out
ENCODED = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nU\x02u1\x85R"
PAIRS = b"](" + b"".join(b"K%c]\x86" % i for i in range(256)) * 40 + b"eq\x00"
BOMBS = {
    "memo": b"Nr\xff\xff\xff\x7f.",
    "text": b"T\xff\xff\xff\x7fabc.",
    "bytes": b"\x8e" + (2**62).to_bytes(8, "little") + b"abc.",
    "frame": b"\x95" + b"\xff" * 8 + b"N.",
    "long number": b"](\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6 + b"e.",
    "marks": b"(" * DEPTH + b"t" * DEPTH + b".",
    "lists in lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "tuples in tuples": NESTED + b".",
    "tuples as key": b"}" + NESTED + b"Ns.",
    "tuples in a frozenset": b"(" + NESTED + b"\x91.",
    "tuples in parameters": b"}N" + b"q\x00ctorch._utils\n_rebuild_parameter\nh\x00\x85\x85R" * 2000 + b"Ns.",
    "laughs": LAUGHS + b".",
    "laughs called": LAUGHS + b")R.",
    "laughs as order": b"](" + LAUGHS + b"e.",
    "laughs as key of a storage": b"](" + LAUGHS.replace(b"\x86", b"]q\x00h\x00") + b"\x85Qe.",
    "laughs as key of a storage in a list": b"](U\x07storageN" + LAUGHS + b"NNeQ.",
    "laughs as type": b"cnumpy\ndtype\n" + LAUGHS + b"\x85R.",
    "encoded again and again": TEXT + b"q\x00](" + ENCODED * 4000 + b"e.",
    "arrays again and again": TEXT + b"q\x00](" + (ARRAY + b"(K\1)" + DTYPE + b"\x89h\x00tb") * 4000 + b"e.",
    "dictionaries again and again": b"](" + PAIRS + b"ccollections\nOrderedDict\nh\x00\x85R" * 50000 + b"e.",
    "dictionaries of a list that grows": (
        b"](]q\x00\x85q\x01h\x00(" + b"N]\x86" * 20000 + b"e" + b"ccollections\nOrderedDict\nh\x01R" * 10000 + b"e."
    ),
    "rows of nothing": b"}U\x04data" + ARRAY + b"(K\1\x8a\x05\0\0\0\0\1K\0\x86" + DTYPE + b"\x89U\0tbs.",
    "list that holds itself": b"]q\x00h\x00ah\x00h\x00\x86R.",
}


def main():
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
    header = OLD_FORMAT + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for name, bomb in BOMBS.items():
        data = b"\x80\x02" + bomb
        for read, content in ((read_theirs, header + data), (read_images, data), (read_ours, data)):
            with pytest.raises((UsageError, DataError, ValueError)) as error:
                read(content)
            assert len(str(error.value)) < 1000, name
        print(name, flush=True)


if __name__ == "__main__":
    main()
