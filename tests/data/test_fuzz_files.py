"""Random damage to files from outside, and hostile ones: each is read, or refused with the documented error. None runs
code, fills the memory or ends the process."""

import io
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_legacy import make, save, stand_ins

from mnemonics.data.cifar100 import DataError, read_python_split
from mnemonics.engine.files import parsed
from mnemonics.engine.pickle_scan import PickleError
from mnemonics.legacy import checkpoints as legacy
from mnemonics.legacy.networks import network_of

ROOT = Path(__file__).resolve().parents[2]
fuzz = settings(max_examples=100, derandomize=True, deadline=None, database=None)
WATCHED = (
    "os.system os.exec os.posix_spawn os.fork os.forkpty subprocess.Popen socket.connect exec compile import "
    "marshal.loads pickle.find_class ctypes.dlopen os.remove os.rename"
).split()
NAMES = (
    "os.system builtins.eval builtins.getattr posix.system numpy.dtype numpy.ndarray numpy.load _codecs.encode "
    "numpy._core.multiarray._reconstruct numpy.core.multiarray.scalar collections.OrderedDict builtins.set "
    "torch.FloatStorage torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter "
    "torch.nn.modules.conv.Conv2d models.modified_resnet_cifar.ResNet"
).split()
PIECES = (
    *(b"c%b\n%b\n" % tuple(name.encode().rsplit(b".", 1)) for name in NAMES),
    *(bytes([operation]) for operation in b"()]}tldaesuRb012NQio.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97"),
    *(b"K\x05", b"J\xff\xff\xff\xff", b"I7\n", b"L9L\n", b"G" + bytes(8), b"F1e999\n", b"S'x'\n", b"V\\ud800\n"),
    *(b"X\x02\x00\x00\x00f4", b"U\x02u1", b"C\x03abc", b"U\x07storage", b"U\x06module", b"P1\n", b"\x82\x01"),
    *(b"q\x00", b"q\x00", b"h\x00", b"h\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f"),
    *(b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x80\x02", b"\x80\xff", b"\x95" + b"\xff" * 8),
)
happened: list[str] = []
watching = False


def watch(event, arguments):
    """An audit hook, which stays for as long as the process lives."""
    if watching and (event in WATCHED or (event == "open" and set(str(arguments[1])) & set("wax+"))):
        happened.append(f"{event} {arguments!r:.200}")


@pytest.fixture(autouse=True, scope="module")
def hook():
    b"".decode("raw_unicode_escape")  # its codec is imported now, not while pickles are watched
    sys.addaudithook(watch)


def harmless(read, data):
    """Whether `read` takes `data`; it raises the documented errors only, and does nothing that is watched."""
    global watching
    happened.clear()
    watching = True
    try:
        read(data)
        return True
    except (PickleError, DataError):
        return False
    finally:
        watching = False
        assert happened == []


class InMemory:
    """What `read_python_split` needs of a path."""

    def __init__(self, data):
        self.read_bytes = lambda: data


def read_images(data):
    read_python_split(InMemory(data), "file")


def read_legacy(data):
    legacy.refuse_what_is_no_pickle(data)
    network_of(legacy.module_of(data))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Whole files: name -> (how to read it, its content)."""
    folder = tmp_path_factory.mktemp("originals")
    with stand_ins(folder):
        module = make("resnet_cifar", 1, 4)
        networks = {old: save(module, folder / f"{old}.pth", old).read_bytes() for old in (True, False)}
    rng = np.random.default_rng(0)
    images = {"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8), "fine_labels": rng.permutation(100).tolist()}
    return {
        "old network": (read_legacy, networks[True]),
        "zip network": (read_legacy, networks[False]),
        "class order": (legacy.order_of, pickle.dumps(np.arange(100), 2)),
        "class order, text": (legacy.order_of, pickle.dumps(list(range(100)), 0)),
        "images": (read_images, pickle.dumps(images, 2)),
    }


EDIT = st.tuples(
    st.sampled_from(("byte", "insert", "delete", "double", "cut")),
    st.integers(0, 4000) | st.integers(-4000, -1) | st.integers(0, 400_000),
    st.sampled_from(PIECES) | st.binary(min_size=1, max_size=6),
)


def edited(data, edits):
    for kind, place, new in edits:
        place %= len(data) or 1
        start, end, long = data[:place], data[place:], 8 * len(new)
        data = {
            "byte": start + new[:1] + end[1:],
            "insert": start + new + end,
            "delete": start + end[len(new) :],
            "double": start + end[:long] + end,
            "cut": start,
        }[kind]
    return data


@pytest.mark.parametrize("name", ["old network", "zip network", "class order", "class order, text", "images"])
def test_damaged_files(name, originals):
    read, data = originals[name]
    assert harmless(read, data)  # whatever is imported late is there now

    @fuzz
    @given(st.lists(EDIT, min_size=1, max_size=6))
    def check(edits):
        harmless(read, edited(data, edits))

    check()


@pytest.mark.parametrize("name", ["old network", "class order", "images"])
def test_random_programs(name, originals):
    """Pickles are programs: these are made of the operations that there are and of names that matter."""
    read, data = originals[name]
    start = data[: data.index(b"}q") + 2] if name == "old network" else b"\x80\x02"

    @fuzz
    @given(st.lists(st.sampled_from(PIECES), max_size=25))
    def check(program):
        harmless(read, start + b"".join(program) + b".")
        harmless(read, b"".join(program) + b".")

    check()


# hostile files


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
    "memo as text": b"Np99999999999\n.",
    "text": b"T\xff\xff\xff\x7fabc.",
    "bytes": b"\x8e" + (2**62).to_bytes(8, "little") + b"abc.",
    "bytearray": b"\x96" + (2**62).to_bytes(8, "little") + b"abc.",
    "frame": b"\x95" + b"\xff" * 8 + b"N.",
    "digits": b"I" + b"9" * 10**6 + b"\n.",
    "long number": b"](\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6 + b"e.",
    "marks": b"(" * DEPTH + b"t" * DEPTH + b".",
    "lists in lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "tuples in tuples": NESTED + b".",
    "tuples by memo": b"N" + b"q\x00h\x00\x85" * DEPTH + b".",
    "tuples as key": b"}" + NESTED + b"Ns.",
    "tuples in a set": b"\x8f(" + NESTED + b"\x90.",
    "tuples in a frozenset": b"(" + NESTED + b"\x91.",
    "tuples in parameters": b"}N" + b"q\x00ctorch._utils\n_rebuild_parameter\nh\x00\x85\x85R" * 2000 + b"Ns.",
    "laughs": LAUGHS + b".",
    "laughs called": LAUGHS + b")R.",
    "laughs as name": LAUGHS + b"N\x93.",
    "laughs made": LAUGHS + b")\x81.",
    "laughs as order": b"](" + LAUGHS + b"e.",
    "laughs as key of a storage": b"](" + LAUGHS.replace(b"\x86", b"]q\x00h\x00") + b"\x85Qe.",
    "laughs as type": b"cnumpy\ndtype\n" + LAUGHS + b"\x85R.",
    "encoded again and again": TEXT + b"q\x00](" + ENCODED * 4000 + b"e.",
    "arrays again and again": TEXT + b"q\x00](" + (ARRAY + b"(K\1)" + DTYPE + b"\x89h\x00tb") * 4000 + b"e.",
    "dictionaries again and again": b"](" + PAIRS + b"ccollections\nOrderedDict\nh\x00\x85R" * 50000 + b"e.",
    "dictionaries of a list that grows": (
        b"](]q\x00\x85q\x01h\x00(" + b"N]\x86" * 10**5 + b"e" + b"ccollections\nOrderedDict\nh\x01R" * 50000 + b"e."
    ),
    "rows of nothing": b"}U\x04data" + ARRAY + b"(K\1\x8a\x05\0\0\0\0\1K\0\x86" + DTYPE + b"\x89U\0tbs.",
    "list that holds itself": b"]q\x00h\x00ah\x00h\x00\x86R.",
}


def test_nothing_of_these_fills_the_memory_or_ends_the_process():
    code = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; import test_fuzz_files as t; t.read_bombs()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [*"".join(f"{name}\n" for name in BOMBS).split()]


def read_bombs():
    """Each bomb with each reader; prints the names of the bombs. Two gigabytes of memory are all there is."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
    header = b"".join(pickle.dumps(x, 2) for x in (legacy.MAGIC, legacy.PROTOCOL, {"little_endian": True}))
    readers = (lambda data: read_legacy(header + data), read_images, read_own)
    for name, bomb in BOMBS.items():
        for read in readers:
            with pytest.raises((PickleError, DataError, ValueError)) as error:
                read(b"\x80\x02" + bomb)
            assert len(str(error.value)) < 1000, name
        print(name, flush=True)


def read_own(pickled):
    """Read a checkpoint of ours whose pickle is this one."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    parsed(Path("c.pt"), target.getvalue(), torch.device("cpu"))


def test_no_checkpoint_is_loaded_in_another_way():
    calls = [
        line
        for folder in ("mnemonics", "eval", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(torch|pickle|joblib|numpy|np)\.load\(", line)
    ]
    assert calls
    assert all("torch.load(" in call and "weights_only=True" in call for call in calls)


def test_what_is_watched_is_noticed():
    """The hook itself."""
    for read, data in ((exec, "1"), (pickle.loads, b"cos\ngetcwd\n.")):
        with pytest.raises(AssertionError):
            harmless(read, data)
