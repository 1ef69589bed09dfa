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
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_command_lines import fuzz
from test_legacy import make, save, stand_ins

from mnemonics.data import cifar100
from mnemonics.data.pickles import PickleError
from mnemonics.legacy import checkpoints as legacy
from mnemonics.legacy.networks import network_of

ROOT = Path(__file__).resolve().parents[2]
WATCHED = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect"),
    *("exec", "compile", "import", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "os.remove", "os.rename"),
)
NAMES = (
    *(b"os system", b"builtins eval", b"builtins exec", b"builtins getattr", b"posix system", b"subprocess Popen"),
    *(b"numpy dtype", b"numpy ndarray", b"numpy._core.multiarray _reconstruct", b"numpy.core.multiarray scalar"),
    *(b"_codecs encode", b"collections OrderedDict", b"builtins set", b"torch FloatStorage", b"numpy load"),
    *(b"torch._utils _rebuild_tensor_v2", b"torch._utils _rebuild_parameter", b"torch.nn.modules.conv Conv2d"),
    *(b"models.modified_resnet_cifar ResNet", b"torch.nn.backends.thnn _get_thnn_function_backend"),
)
PIECES = (
    *(b"c" + name.replace(b" ", b"\n") + b"\n" for name in NAMES),
    *(b"(", b")", b"]", b"}", b"\x8f", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"R", b"b", b"\x81", b"\x85", b"\x86"),
    *(
        b"\x87",
        b"0",
        b"1",
        b"2",
        b"N",
        b"\x88",
        b"\x89",
        b"K\x05",
        b"M\x01\x02",
        b"J\xff\xff\xff\xff",
        b"I7\n",
        b"L9L\n",
    ),
    *(
        b"G" + bytes(8),
        b"F1e999\n",
        b"X\x02\x00\x00\x00f4",
        b"U\x02u1",
        b"C\x03abc",
        b"S'x'\n",
        b"V\\ud800\n",
        b"q\x00",
    ),
    *(b"q\x00", b"h\x00", b"\x94", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"L9L\n"),
    *(b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x93", b"\x92", b"\x90", b"\x91", b"\x82\x01", b"Q", b"P1\n", b"i", b"o"),
    *(b"\x80\x02", b"\x80\xff", b"\x95" + b"\xff" * 8, b"\x97", b"\x98", b".", b"U\x07storage", b"U\x06module"),
)
happened: list[str] = []
watching = False


def watch(event, arguments):
    """An audit hook, which stays for as long as the process lives."""
    if watching and (event in WATCHED or (event == "open" and set(str(arguments[1])) & set("wax+"))):
        happened.append(f"{event} {arguments!r:.200}")


@pytest.fixture(autouse=True, scope="module")
def hook():
    sys.addaudithook(watch)


def harmless(read, data):
    """Whether `read` takes `data`; it raises the documented errors only, and does nothing that is watched."""
    global watching
    happened.clear()
    watching = True
    try:
        read(data)
        return True
    except (PickleError, cifar100.DataError):
        return False
    finally:
        watching = False
        assert happened == []


def read_legacy(data):
    legacy.refuse_what_is_no_pickle(data)
    network_of(legacy.module_of(data))


def cifar_reader(folder):
    def read(data):
        global watching
        watching = False
        (folder / "file").write_bytes(data)
        watching = True
        cifar100.read_python_split(folder / "file", "file")

    return read


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
        "images": (cifar_reader(folder), pickle.dumps(images, 2)),
    }


FILES = ("old network", "zip network", "class order", "class order, text", "images")
PLACE = st.integers(0, 4000) | st.integers(-4000, -1) | st.integers(0, 400_000)
EDIT = st.tuples(
    st.sampled_from(("byte", "insert", "delete", "double", "cut")),
    PLACE,
    st.sampled_from(PIECES) | st.binary(min_size=1, max_size=6),
)


def edited(data, edits):
    data = bytearray(data)
    for kind, place, new in edits:
        if not data:
            break
        place %= len(data)
        if kind == "byte":
            data[place] = new[0]
        elif kind == "insert":
            data[place:place] = new
        elif kind == "delete":
            del data[place : place + len(new)]
        elif kind == "double":
            data[place:place] = data[place : place + 8 * len(new)]
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read(name, originals):
    assert harmless(*originals[name])


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name, originals):
    read, data = originals[name]
    harmless(read, data)  # whatever is imported late is there now

    @fuzz(300)
    @given(st.lists(EDIT, min_size=1, max_size=6))
    def check(edits):
        harmless(read, edited(data, edits))

    check()


@pytest.mark.parametrize("name", ["old network", "class order", "images"])
def test_random_programs(name, originals):
    """Pickles are programs: these are made of the operations that they know and of names that matter."""
    read, data = originals[name]
    harmless(read, data)
    start = data[: data.index(b"}q") + 2] if name == "old network" else b"\x80\x02"

    @fuzz(300)
    @given(st.lists(st.sampled_from(PIECES), max_size=25))
    def check(program):
        harmless(read, start + b"".join(program) + b".")
        harmless(read, b"".join(program) + b".")

    check()


# hostile files


DEPTH = 2 * 10**5
NESTED = b"N" + b"\x85" * DEPTH


def text(length):
    return b"X" + length.to_bytes(4, "little") + b"a" * length


LAUGHS = b"N" + b"2\x86" * 70  # a pair of pairs of pairs: 2**70 when it is written out
BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo as text": b"Np99999999999\n.",
    "text": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "bytes": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.",
    "bytearray": b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b"abc.",
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "digits": b"I" + b"9" * 10**6 + b"\n.",
    "long number": b"](\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6 + b"e.",
    "lists in lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "tuples in tuples": NESTED + b".",
    "tuples as key": b"}" + NESTED + b"Ns.",
    "tuples in a set": b"\x8f(" + NESTED + b"\x90.",
    "tuples in a frozenset": b"(" + NESTED + b"\x91.",
    "tuples as type": b"cnumpy\ndtype\n" + NESTED + b"\x85R.",
    "laughs": LAUGHS + b".",
    "laughs called": LAUGHS + b")R.",
    "laughs as name": LAUGHS + b"N\x93.",
    "laughs made": LAUGHS + b")\x81.",
    "laughs as order": b"](" + LAUGHS + b"e.",
    "encoded again and again": text(10**6) + b"q\x000" + b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R" * 4000 + b".",
    "dictionaries again and again": (
        b"](" + b"".join(b"K%c]\x86" % i for i in range(256)) * 40 + b"eq\x000"
        b"" + b"ccollections\nOrderedDict\nh\x00\x85R" * 50000 + b"."
    ),
    "list that holds itself": b"]q\x00h\x00ah\x00h\x00\x86R.",
}


def test_nothing_of_these_fills_the_memory_or_ends_the_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; "
         "import test_fuzz_files; test_fuzz_files.read_bombs(sys.argv[1])", tmp_path],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [*BOMBS, ""]


def read_bombs(folder):
    """Each bomb with each reader; prints the names of the bombs. Two gigabytes of memory are all there is."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
    header = b"".join(pickle.dumps(x, 2) for x in (legacy.MAGIC, legacy.PROTOCOL, {"little_endian": True}))
    readers = (lambda data: read_legacy(header + data), cifar_reader(Path(folder)))
    for name, bomb in BOMBS.items():
        for read in readers:
            with pytest.raises((PickleError, cifar100.DataError)) as error:
                read(bomb)
            assert len(str(error.value)) < 1000, name
        print(name, flush=True)


def test_compressed_files_of_a_checkpoint(originals):
    """The file that names the byte order, too, could be of any size."""
    _, data = originals["zip network"]
    source, copy = io.BytesIO(data), io.BytesIO()
    with zipfile.ZipFile(source) as original, zipfile.ZipFile(copy, "w") as archive:
        for name in original.namelist():
            packed = zipfile.ZIP_DEFLATED if name.endswith("byteorder") else zipfile.ZIP_STORED
            archive.writestr(name, bytes(10**8) if name.endswith("byteorder") else original.read(name), packed)
    with pytest.raises(PickleError, match="byteorder is compressed"):
        legacy.module_of(copy.getvalue())


def test_rows_of_nothing_make_no_large_network(originals):
    record = legacy.module_of(originals["old network"][1])
    record.children["fc"].parameters["weight"] = torch.empty(2**40, 0)
    with pytest.raises(PickleError, match="weight has shape"):
        network_of(record)


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
    with pytest.raises(AssertionError):
        harmless(lambda _: exec("1"), b"")
    with pytest.raises(AssertionError):
        harmless(pickle.loads, b"cos\ngetcwd\n.")
