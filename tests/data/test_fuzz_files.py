"""Random damage to files from outside, and hostile ones: each is read, or refused with the documented error. None runs
code, fills the memory or ends the process."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from authors_networks import make, save, stand_ins
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_bombs import BOMBS, read_images, read_order, read_theirs

from mnemonics.data.images import DataError
from mnemonics.engine.errors import UsageError

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
    except (UsageError, DataError):
        return False
    finally:
        watching = False
        assert happened == []


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Whole files: name -> (how to read it, its content, and what of it random pickles go after)."""
    folder = tmp_path_factory.mktemp("originals")
    with stand_ins():
        module = make("resnet_cifar", 1, 4)
        old, new = (save(module, folder / "network.pth", old).read_bytes() for old in (True, False))
    rng = np.random.default_rng(0)
    images = {"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8), "fine_labels": rng.permutation(100).tolist()}
    return {
        "old network": (read_theirs, old, old[: old.index(b"}q") + 2]),
        "zip network": (read_theirs, new, b"PK"),
        "class order": (read_order, pickle.dumps(np.arange(100), 2), b"\x80\x02"),
        "class order, text": (read_order, pickle.dumps(list(range(100)), 0), b""),
        "images": (read_images, pickle.dumps(images, 2), b"\x80\x02"),
    }


PLACE = st.integers(0, 4000) | st.integers(-4000, -1) | st.integers(0, 400_000)
EDIT = st.tuples(PLACE, st.integers(-60, 6), st.sampled_from(PIECES) | st.binary(max_size=6))


def edited(data, edits):
    """With `new` put in at some places, and so many bytes skipped before the rest; fewer than 0: read once more."""
    for place, skipped, new in edits:
        place %= len(data) or 1
        data = data[:place] + new + data[max(place + skipped, 0) :]
    return data


@pytest.mark.parametrize("name", ["old network", "zip network", "class order", "class order, text", "images"])
def test_damaged_files_and_random_programs(name, originals):
    """Pickles are programs: the random ones are made of the operations that there are and of names that matter."""
    read, data, start = originals[name]
    assert harmless(read, data)  # whatever is imported late is there now

    @fuzz
    @given(st.lists(EDIT, min_size=1, max_size=6), st.lists(st.sampled_from(PIECES), max_size=25))
    def check(edits, program):
        harmless(read, edited(data, edits))
        harmless(read, data[: edits[0][0]])
        harmless(read, start + b"".join(program) + b".")

    check()


def test_nothing_of_these_fills_the_memory_or_ends_the_process():
    command = [sys.executable, ROOT / "tests" / "pickle_bombs.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == list(BOMBS)


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
