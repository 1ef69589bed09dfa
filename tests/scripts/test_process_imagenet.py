"""process_imagenet: made-up trees and archives like ILSVRC2012's, and real photographs."""

import gzip
import hashlib
import io
import os
import resource
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat
from torchvision.datasets import imagenet
from torchvision.transforms import Resize

from mnemonics.data import prepare_imagenet

ROOT = Path(__file__).resolve().parents[2]
SUBSET, ALL = "generate_imagenet_subset.py", "generate_imagenet.py"
WNIDS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 2085620, 2100000, 9193705)]
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"


def picture(seed=0, size=(40, 30), mode="RGB", form="JPEG", **options):
    """The content of an image file."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_tree(root):
    """train/<wnid>/ with three images each, val/<wnid>/ with two, and what systems and people leave beside them."""
    for index, wnid in enumerate(WNIDS):
        for number in range(3):
            write(root / "train" / wnid / f"{wnid}_{number}.JPEG", picture(10 * index + number))
        for number in range(2):  # val numbers go round the classes
            name = f"ILSVRC2012_val_{len(WNIDS) * number + index + 1:08d}.JPEG"
            write(root / "val" / wnid / name, picture(1000 + 10 * index + number))
    for clutter in (".DS_Store", f"{WNIDS[0]}/Thumbs.db", f"{WNIDS[0]}/._x.JPEG", "__MACOSX/x", ".ipynb_checkpoints/x"):
        write(root / "train" / clutter)
    return root


def rearranged(tree, dst, train="train/{wnid}/{name}", val="val/{wnid}/{name}"):
    """Copy the images of a tree to other places."""
    for path, content in contents(tree).items():
        split, wnid, name = path.split("/")
        write(dst / (train if split == "train" else val).format(wnid=wnid, name=name), content)
    return dst


def make_tiny(tree, dst):
    """As Tiny-ImageNet is."""
    rearranged(tree, dst, "train/{wnid}/images/{name}", "val/images/{name}")
    lines = [f"{file.name}\t{file.parent.name}\t0\t0\t62\t62\n" for file in tree.glob("val/*/*")]
    write(dst / "val" / "val_annotations.txt", "".join(lines).encode())
    return dst


def make_devkit(folder):
    """The devkit for the validation images of `make_tree`: ids not in the order of the wnids, and inner nodes."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "images")
    synsets = np.zeros((len(WNIDS) + 2, 1), dtype=[(name, object) for name in fields])
    for row, wnid in enumerate([*WNIDS[::-1], "n00001740", "n00001930"]):
        inner = row >= len(WNIDS)
        synsets[row, 0] = (row + 1.0, wnid, f"word {row}, other", "gloss", 2.0 * inner, np.zeros(2 * inner), 1.0, 3.0)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{len(WNIDS) - index}\n" for _ in range(2) for index in range(len(WNIDS))).encode()
    files = [("meta.mat", meta.getvalue()), ("ILSVRC2012_validation_ground_truth.txt", truth)]
    write(folder / f"{DEVKIT}.tar.gz", gzip.compress(tar_of((f"{DEVKIT}/data/{name}", file) for name, file in files)))
    return folder / f"{DEVKIT}.tar.gz"


def tar_of(files):
    """An archive of (name, content) as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_archives(tree, dst):
    """The three archives that hold what `tree` does."""
    files = [(path.split("/"), content) for path, content in sorted(contents(tree).items())]
    inner = {wnid: [(f, c) for (split, w, f), c in files if (split, w) == ("train", wnid)] for wnid in WNIDS}
    write(dst / TRAIN, tar_of((f"{wnid}.tar", tar_of(images)) for wnid, images in inner.items()))
    write(dst / VAL, tar_of((name, content) for (split, _, name), content in files if split == "val"))
    make_devkit(dst)
    return dst


@pytest.fixture
def src(tmp_path):
    return make_tree(tmp_path / "src")


@pytest.fixture
def our_devkit(monkeypatch):
    """torchvision takes the made-up devkit for the official one, whose MD5 it lacks."""
    monkeypatch.setattr(imagenet, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a script in this process: (exit status, standard output, standard error)."""

    def run(*arguments, script=ALL, cwd=tmp_path):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "process_imagenet" / script), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def started(*arguments, prepare=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)):
    """generate_imagenet.py in its own process, from a folder that is not the repository's; by default it heeds Ctrl-C,
    as in a terminal and not in the background of a shell."""
    command = [sys.executable, "-W", "error", ROOT / "process_imagenet" / ALL, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd="/", preexec_fn=prepare, **options)


def contents(root, wnids=WNIDS):
    """Every image that a data loader sees of these classes: relative path -> content."""
    files = [file for wnid in wnids for file in root.glob(f"*/{wnid}/[!.]*.[Jp]*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def times(root):
    return {file: file.lstat().st_mtime_ns for file in root.rglob("*") if not file.is_dir()}


def test_subset_links_the_drawn_classes_and_writes_their_list_and_its_hash(call, src, tmp_path):
    status, out, error = call("--src", src, "--dst", "out", "--num_classes", 4, script=SUBSET)
    assert (status, error) == (0, "")
    np.random.seed(1993)
    drawn = np.random.choice(WNIDS, 4, replace=False).tolist()
    dst = tmp_path / "out"
    assert (dst / "wnids.txt").read_text() == "".join(f"{wnid}\n" for wnid in drawn)
    digest = hashlib.sha256((dst / "wnids.txt").read_bytes()).hexdigest()
    assert (dst / "wnids.txt.sha256").read_text() == f"{digest}  wnids.txt\n"
    assert f"4 of 6 classes, SHA-256 of wnids.txt {digest}: not the classes of the paper" in out
    assert "out: 12 images in train, 8 images in val" in out
    assert contents(dst) == contents(src, drawn)
    assert all(file.is_symlink() for file in dst.rglob("*.JPEG"))


def test_all_classes_a_known_list_and_the_folders_where_main_looks(call, tmp_path, monkeypatch):
    make_tree(tmp_path / "data" / "imagenet")
    digest = hashlib.sha256("".join(f"{wnid}\n" for wnid in WNIDS).encode()).hexdigest()
    monkeypatch.setitem(prepare_imagenet.KNOWN, digest, "these six")
    assert f"6 of 6 classes, SHA-256 of wnids.txt {digest}: these six\n" in call()[1]
    assert contents(tmp_path / "data" / "imagenet_all" / "data") == contents(tmp_path / "data" / "imagenet")
    assert call("--num_classes", 2, script=SUBSET)[0] == 0
    listed = (tmp_path / "data" / "seed_1993_subset_100_imagenet" / "data" / "wnids.txt").read_text().split()
    assert listed == np.random.RandomState(1993).choice(WNIDS, 2, replace=False).tolist()


@pytest.mark.parametrize("flags", [[], ["--link", "copy"], ["--resize", "16"]])
def test_a_second_run_makes_what_is_missing_and_nothing_else(call, src, tmp_path, flags):
    run = partial(call, "--src", "src", "--dst", "out", *flags)
    assert run()[::2] == (0, "")
    before, good = times(tmp_path / "out"), contents(tmp_path / "out")
    assert run()[::2] == (0, "")
    assert times(tmp_path / "out") == before
    gone, empty = sorted((tmp_path / "out").rglob("*.JPEG"))[:2]
    gone.unlink()
    if flags:
        assert not empty.is_symlink()
        empty.write_bytes(b"")  # as a power cut can leave it
    assert run()[0] == 0
    assert contents(tmp_path / "out") == good
    assert (good == contents(src)) == ("--resize" not in flags)
    src.rename(tmp_path / "moved")
    assert call("--src", "moved", "--dst", "out", *flags)[0] == 0
    assert contents(tmp_path / "out") == good  # links follow


KINDS = {
    "grey.JPEG": {"mode": "L"},
    "cmyk.JPEG": {"mode": "CMYK"},
    "alpha.JPEG": {"mode": "RGBA", "form": "PNG"},
    "palette.png": {"mode": "P", "form": "PNG", "transparency": bytes(range(100))},
    "tall.JPEG": {"size": (333, 500)},
    "turned.JPEG": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
}


@pytest.mark.parametrize(("resize", "size"), [("17", 17), ("12x20", (20, 12))])
def test_any_image_becomes_rgb_as_torchvision_resizes_it(call, src, tmp_path, resize, size):
    """And is turned as its EXIF tag says."""
    for name, kind in KINDS.items():
        write(src / "train" / WNIDS[0] / name, picture(5, **kind))
    assert Image.open(io.BytesIO(picture(5, **KINDS["turned.JPEG"]))).getexif()[0x0112] == 6
    assert call("--src", src, "--dst", "out", "--resize", resize)[::2] == (0, "")
    for name, kind in KINDS.items():
        original = ImageOps.exif_transpose(Image.open(io.BytesIO(picture(5, **kind))))
        plain = original.convert("RGBA").convert("RGB") if original.mode == "P" else original.convert("RGB")
        right = io.BytesIO()
        Resize(size)(plain).save(right, "JPEG", quality=95)
        made = tmp_path / "out" / "train" / WNIDS[0] / (name if name.endswith(".JPEG") else f"{name}.JPEG")
        assert made.read_bytes() == right.getvalue()


def test_bad_files_are_listed_and_skipped_and_all_else_is_done(call, src, tmp_path):
    good, bad = picture(3, size=(300, 200)), f"train/{WNIDS[1]}"
    starts = ["train/loose.JPEG: belongs to no class", f"train/{WNIDS[0]}: holds no images"]
    starts += [f"{bad}/cut.JPEG: cannot be read (", f"{bad}/folder.JPEG: not a file", f"{bad}/gone.JPEG: not a file"]
    starts += [f"{bad}/text.JPEG: not an image", "val/cats: belongs to no class"]
    (src / bad / "folder.JPEG").mkdir()
    (src / bad / "gone.JPEG").symlink_to("nowhere")
    write(src / "train" / "loose.JPEG", good)
    write(src / "val" / "cats" / "cat.JPEG", good)
    (src / "train" / WNIDS[0]).rename(src / "moved")
    write(src / "train" / WNIDS[0] / "empty.txt")
    write(src / bad / "cut.JPEG", good[: len(good) // 2])
    write(src / bad / "text.JPEG", b"<html>not found</html>")
    for _ in range(2):
        status, out, error = call("--src", src, "--dst", "out", "--resize", 16)
        assert (status, "15 images in train, 12 images in val" in out) == (1, True)
        *lines, summary = error.splitlines()
        assert summary == f"the {len(starts)} above could not be used; all else is done"
        assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
        assert len(contents(tmp_path / "out")) == 27


@pytest.mark.parametrize("place", ["src", "elsewhere"])
@pytest.mark.usefixtures("our_devkit")
def test_unsorted_val_is_sorted_with_the_devkit_and_strays_are_listed(call, src, tmp_path, place):
    flat, right = rearranged(src, tmp_path / "flat", val="val/{name}"), contents(src)
    devkit = make_devkit(flat if place == "src" else tmp_path)
    (flat / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()  # a hole, which must move no label
    write(flat / "val" / "holiday.JPEG", picture())
    status, _, error = call("--src", flat, "--dst", "out", *(["--devkit", devkit] if place != "src" else []))
    assert (status, error.splitlines()[0]) == (1, "val/holiday.JPEG: nothing says which class it is")
    del right[f"val/{WNIDS[1]}/ILSVRC2012_val_00000002.JPEG"]
    assert contents(tmp_path / "out") == right


def test_tiny_imagenet(call, src, tmp_path):
    assert call("--src", make_tiny(src, tmp_path / "tiny"), "--dst", "out")[::2] == (0, "")
    assert contents(tmp_path / "out") == contents(src)


@pytest.mark.parametrize("flags", [[], ["--resize", "20x20"]])
@pytest.mark.usefixtures("our_devkit")
def test_archives_give_the_same_as_folders(call, src, tmp_path, flags):
    assert call("--src", src, "--dst", "right", *flags)[::2] == (0, "")
    assert call("--src", make_archives(src, tmp_path / "archives"), "--dst", "out", *flags)[::2] == (0, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "right")
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))


@pytest.mark.usefixtures("our_devkit")
def test_nothing_in_an_archive_says_where_to_write(call, src, tmp_path):
    archives = make_archives(src, tmp_path / "archives")
    evil = [(name, picture()) for name in ("../../evil.JPEG", "/tmp/evil/abs.JPEG", "a/..", "sub/in.JPEG")]
    write(archives / TRAIN, tar_of((f"x/{wnid}.tar", tar_of(evil)) for wnid in WNIDS))
    assert call("--src", archives, "--dst", "out/put")[::2] == (0, "")
    for wnid in WNIDS:
        assert sorted(os.listdir(tmp_path / "out/put/train" / wnid)) == ["abs.JPEG", "evil.JPEG", "in.JPEG"]
    assert os.listdir(tmp_path / "out") == ["put"]


@pytest.mark.parametrize(
    ("name", "how"), [*product((TRAIN, VAL), ("cut", "last cut off", "text")), (TRAIN, "last class")]
)
@pytest.mark.usefixtures("our_devkit")
def test_damaged_archives_end_the_run_in_one_line(call, src, tmp_path, name, how):
    path = make_archives(src, tmp_path / "archives") / name
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    spoilt = bytearray(path.read_bytes())
    spoilt[last.offset_data : last.offset_data + 400] = b"\xff" * 400  # the first header in the archive of a class
    damaged = {"cut": spoilt[: last.offset_data + 9], "last cut off": spoilt[: last.offset], "text": b"<html>" * 999}
    write(path, damaged.get(how, spoilt))
    status, _, error = call("--src", path.parent, "--dst", "out")
    assert (status, error.count("\n")) == (2, 1)
    assert f"--src: {path} is damaged or not whole" in error
    made = {file: content for file, content in contents(src, WNIDS[:-1]).items() if file.startswith("train")}
    assert contents(tmp_path / "out") == (made if how == "last class" else {})


MISTAKES = [
    ("--src empty", ["--src empty", "holds neither train/ nor ILSVRC2012_img_train.tar"]),
    ("--src none", ["--src none", "no training classes"]),
    ("--src half", ["--src half", "1 of the 6 classes have no validation images", WNIDS[0]]),
    ("--src flat", ["--devkit", DEVKIT, "download it"]),
    ("--src other", ["--devkit", DEVKIT, "download it"]),
    ("--src tiny", ["val_annotations.txt", "not like val_0.JPEG"]),
    ("--dst src/out", ["--dst src/out", "lies in --src src"]),
    ("--dst file", ["--dst file", "is not a folder"]),
    ("--dst none", ["--dst none", "see its wnids.txt", "name another folder"]),
    ("--dst done --link copy", ["--dst done", "settings.txt", "name another folder"]),
    ("--dst done --num_classes 3", ["--dst done", "wnids.txt", "name another folder"]),
    ("--num_classes 7", ["--num_classes 7", "must be 1 to 6"]),
    ("--num_classes 0", ["--num_classes 0", "must be 1 to 6"]),
    ("--resize 256x", ["--resize", "256x256"]),
    ("--resize 8 --link copy", ["--link", "not allowed with"]),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """The folders that MISTAKES name."""
    src = make_tree(tmp_path_factory.mktemp("mistakes") / "src")
    root = src.parent
    for name in ("flat", "other"):
        rearranged(src, root / name, val="val/{name}")
    make_devkit(root / "other")  # has not the official MD5
    make_tiny(src, root / "tiny")
    write(root / "tiny" / "val" / "val_annotations.txt", b"val_0.JPEG cat\n")
    rearranged(src, root / "half")
    (root / "half" / "val" / WNIDS[0]).rename(root / "half" / WNIDS[0])
    for path in ("none/train/notes.txt", "none/val/notes.txt", "empty/notes.txt", "file"):
        write(root / path)
    return root


@pytest.mark.parametrize(("flags", "parts"), MISTAKES, ids=[flags for flags, _ in MISTAKES])
def test_mistakes_end_at_once_and_leave_all_as_it_is(call, mistakes, flags, parts):
    run = partial(call, "--src", "src", "--num_classes", 6, script=SUBSET, cwd=mistakes)
    assert run("--dst", "done")[0] == 0
    before = times(mistakes)
    status, out, error = run("--dst", "out", *flags.split())
    assert (status, out) == (2, "")
    *_, line = error.splitlines()  # before it, argparse has its usage
    assert line.startswith(f"{SUBSET}: ")
    assert all(part in line for part in parts), line
    assert times(mistakes) == before


@pytest.mark.parametrize("flags", [["--link", "copy"], ["--resize", "1200"]])
def test_a_full_disk_ends_with_one_line_and_can_be_continued(call, src, tmp_path, flags):
    write(src / "train" / WNIDS[3] / "big.JPEG", picture(size=(900, 900), quality=100))
    limit = 20_000  # bytes per file stand in for a disk: the write of a file breaks off in the same way
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    with started("--src", src, "--dst", tmp_path / "out", *flags, prepare=full) as process:
        error = process.communicate(timeout=120)[1]
    assert (process.returncode, error.count("\n")) == (1, 1)
    assert "File too large; what was saved before is whole, the same command continues" in error
    assert all(len(content) < limit for content in contents(tmp_path / "out").values())
    assert call("--src", src, "--dst", tmp_path / "out", *flags)[0] == 0
    assert len(contents(tmp_path / "out")) == 31


@pytest.mark.parametrize(("number", "told"), [(signal.SIGKILL, ""), (signal.SIGINT, "interrupted")])
def test_interrupted_and_continued(call, src, tmp_path, number, told):
    for i in range(60):
        write(src / "train" / WNIDS[i % 6] / f"slow{i}.JPEG", picture(size=(1500, 1000)))
    flags, dst = ["--src", src, "--dst", tmp_path / "out", "--resize", "200"], tmp_path / "out"
    with started(*flags) as process:
        while len(contents(dst)) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
    assert (process.returncode, told in error) == (130 if told else -number, True)
    assert error.count("\n") == bool(told)
    there, before = contents(dst), times(dst)
    assert 5 <= len(there) < 90
    assert {Image.open(io.BytesIO(content)).convert("L").size for content in there.values()} <= {(300, 200), (266, 200)}
    assert call(*flags)[::2] == (0, "")
    assert all(times(dst)[dst / file] == before[dst / file] for file in there)
    assert len(times(dst)) == 90 + 3  # and no .partial is left
