"""process_imagenet: made-up trees and archives like ILSVRC2012's, and real photographs."""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mnemonics.data.imagenet import images, prepare

ROOT = Path(__file__).resolve().parents[2]
SUBSET, ALL = "generate_imagenet_subset.py", "generate_imagenet.py"
WNIDS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 2085620, 2100000, 9193705)]
DEVKIT = "ILSVRC2012_devkit_t12"


def picture(seed=0, size=(40, 30), mode="RGB", form="JPEG", **options):
    """The content of an image file."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size)
    if mode == "I;16":
        image = Image.fromarray(np.full(size, 999, np.uint16))
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(path):
    """An image as it is stored, loaded."""
    with Image.open(path) as image:
        image.load()
        return image


def make_tree(root, wnids=WNIDS, train=3, val=2, **options):
    """train/<wnid>/ and val/<wnid>/ with `train` and `val` images each; val numbers go round the classes."""
    for index, wnid in enumerate(wnids):
        for split in ("train", "val"):
            (root / split / wnid).mkdir(parents=True)
        for number in range(train):
            (root / "train" / wnid / f"{wnid}_{number}.JPEG").write_bytes(picture(10 * index + number, **options))
        for number in range(val):
            name = f"ILSVRC2012_val_{len(wnids) * number + index + 1:08d}.JPEG"
            (root / "val" / wnid / name).write_bytes(picture(1000 + 10 * index + number, **options))
    return root


def flatten_val(root):
    for file in sorted((root / "val").glob("*/*")):
        file.rename(root / "val" / file.name)
    for folder in (root / "val").glob("n*"):
        folder.rmdir()


def make_devkit(folder, wnids=WNIDS, val=2):
    """The devkit as an archive: ids in another order than the wnids, and inner nodes, which have no images."""
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    synsets = np.zeros((len(wnids) + 2, 1), dtype=[(name, object) for name in fields])
    for row, wnid in enumerate([*wnids[::-1], "n00001740", "n00001930"]):
        inner = row >= len(wnids)
        synsets[row, 0] = (row + 1.0, wnid, f"word {row}, other", "gloss", 2.0 * inner, np.zeros(2 * inner), 1.0, 3.0)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{len(wnids) - index}\n" for _ in range(val) for index in range(len(wnids)))
    path = folder / f"{DEVKIT}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, f"{DEVKIT}/data/meta.mat", meta.getvalue())
        add(tar, f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return path


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def tar_of(files):
    """An archive of (name, content) as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            add(tar, name, content)
    return buffer.getvalue()


def make_archives(root, tree):
    """The three archives that hold what `tree` does."""
    root.mkdir()
    inner = [
        (f"{w}.tar", tar_of((f.name, f.read_bytes()) for f in sorted((tree / "train" / w).iterdir()))) for w in WNIDS
    ]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    val = sorted((tree / "val").glob("*/*"), key=lambda file: file.name)
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of((file.name, file.read_bytes()) for file in val))
    make_devkit(root)
    return root


@pytest.fixture
def src(tmp_path):
    return make_tree(tmp_path / "src")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a script in this process: (exit status, standard output, standard error)."""

    def run(*arguments, script=SUBSET, cwd=tmp_path):
        arguments = list(map(str, arguments))
        arguments += ["--jobs", "1"] if "--jobs" not in arguments else []
        arguments += ["--num_classes", "4"] if script == SUBSET and "--num_classes" not in arguments else []
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "process_imagenet" / script), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def started(*arguments, script=SUBSET, **options):
    """A script in its own process, from a folder that is not the repository's."""
    command = [sys.executable, str(ROOT / "process_imagenet" / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed_interrupts}
    return subprocess.Popen(command, cwd="/", env=environment, **usual | options)


def heed_interrupts():
    """As in a terminal; what a shell runs in the background ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def contents(root):
    """Everything that a data loader sees: relative path -> content."""
    return {str(f.relative_to(root)): f.read_bytes() for s in ("train", "val") for f in sorted((root / s).rglob("*.*"))}


def times(root):
    return {file: file.lstat().st_mtime_ns for file in root.rglob("*") if not file.is_dir() and file.name != ".lock"}


def expected(src, wnids):
    return {name: content for name, content in contents(src).items() if name.split("/")[1] in wnids}


def assert_one_line(error, *parts):
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert "Traceback" not in error
    for part in parts:
        assert str(part) in error


# Which classes


def test_the_draw_is_that_of_the_legacy_numpy_generator():
    wnids = [f"n{number:08d}" for number in random.Random(0).sample(range(10**8), 1000)]
    np.random.seed(1993)
    legacy = np.random.choice(sorted(wnids), 100, replace=False).tolist()
    before = np.random.get_state()[1].tolist()
    assert prepare.draw(wnids, 100, 1993) == legacy
    assert prepare.draw(wnids, 100, 1994) != legacy
    assert np.random.get_state()[1].tolist() == before


def test_subset_links_the_drawn_classes_and_writes_their_list_and_its_hash(call, src, tmp_path):
    status, out, error = call("--src", src, "--dst", "out")
    assert (status, error) == (0, "")
    np.random.seed(1993)
    drawn = np.random.choice(WNIDS, 4, replace=False).tolist()
    dst = tmp_path / "out"
    assert (dst / "wnids.txt").read_text() == "".join(f"{wnid}\n" for wnid in drawn)
    digest = hashlib.sha256((dst / "wnids.txt").read_bytes()).hexdigest()
    assert (dst / "wnids.txt.sha256").read_text() == f"{digest}  wnids.txt\n"
    assert f"4 of 6 classes, SHA-256 of wnids.txt {digest}: not the classes of the paper" in out
    assert "12 images in train, 8 images in val; 20 made now, 0 were there" in out
    assert contents(dst) == expected(src, drawn)
    assert all(file.is_symlink() for file in dst.rglob("*.JPEG"))
    assert json.loads((dst / "prepared.json").read_text())["images"] == {"train": 12, "val": 8}
    assert not (dst / ".partial").exists()


def test_the_classes_of_the_paper_are_recognised(call, src, monkeypatch):
    assert sorted(prepare.KNOWN.values()) == ["all 1000 classes of ILSVRC2012", "the ImageNet-Subset of the paper"]
    digest = hashlib.sha256("".join(f"{wnid}\n" for wnid in WNIDS).encode()).hexdigest()
    monkeypatch.setitem(prepare.KNOWN, digest, "these six")
    assert f"6 of 6 classes, SHA-256 of wnids.txt {digest}: these six\n" in call("--src", src, script=ALL)[1]


def test_all_classes_are_listed_sorted_and_go_to_the_default_folder(call, src, tmp_path):
    src.rename(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "moved").rename(tmp_path / "data" / "imagenet")
    assert call(script=ALL)[0] == 0
    dst = tmp_path / "data" / "imagenet_all" / "data"
    assert (dst / "wnids.txt").read_text().split() == WNIDS
    assert contents(dst) == contents(tmp_path / "data" / "imagenet")
    assert call()[0] == 0
    assert (tmp_path / "data" / "seed_1993_subset_100_imagenet" / "data" / "val").is_dir()


def test_another_seed_and_number(call, src, tmp_path):
    assert call("--src", src, "--dst", "out", "--num_classes", 2, "--seed", 7)[0] == 0
    assert (tmp_path / "out" / "wnids.txt").read_text().split() == prepare.draw(WNIDS, 2, 7)
    assert len(list((tmp_path / "out" / "train").iterdir())) == 2


# Links, and doing it again


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_kinds_of_links(call, src, tmp_path, link):
    assert call("--src", "src", "--dst", "out", "--link", link, script=ALL)[0] == 0
    assert contents(tmp_path / "out") == contents(src)
    for file in (tmp_path / "out").rglob("*.JPEG"):
        original = src / file.relative_to(tmp_path / "out")
        assert file.is_symlink() == (link == "symlink")
        assert file.samefile(original) == (link != "copy")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--link", "hardlink"],
        ["--link", "copy"],
        ["--check"],
        ["--resize", "16"],
        ["--resize", "16", "--jobs", "2"],
    ],
)
def test_a_second_run_changes_nothing(src, tmp_path, call, flags):
    run = call if "--jobs" not in flags else lambda *a: finished(started(*a, "--num_classes", 4))
    assert run("--src", src, "--dst", tmp_path / "out", *flags)[0] == 0
    before = times(tmp_path / "out")
    status, out, error = run("--src", src, "--dst", tmp_path / "out", *flags)
    assert (status, error) == (0, "")
    assert "; 0 made now, 20 were there" in out
    assert times(tmp_path / "out") == before


def finished(process):
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def test_hard_links_to_another_file_system_are_refused(call, src, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "device", lambda path: path)
        status, _, error = call("--src", src, "--dst", "out", "--link", "hardlink")
    assert status == 2
    assert_one_line(error, "--link hardlink", "different file systems", "symlink or copy would work")
    assert not (tmp_path / "out").exists()

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)  # as where a class folder is itself a link to another disk
    status, _, error = call("--src", src, "--dst", "out", "--link", "hardlink")
    assert status == 2
    assert_one_line(error, "--link hardlink", "another file system", "symlink or copy would work")


def test_links_follow_a_source_that_has_moved(call, src, tmp_path):
    assert call("--src", src, "--dst", "out")[0] == 0
    src.rename(tmp_path / "elsewhere")
    assert "; 20 made now" in call("--src", "elsewhere", "--dst", "out")[1]
    assert contents(tmp_path / "out")  # reads through every link


def test_what_is_missing_or_cut_short_is_made_again(call, src, tmp_path):
    assert call("--src", src, "--dst", "out", "--link", "copy")[0] == 0
    gone, cut = sorted((tmp_path / "out").rglob("*.JPEG"))[:2]
    gone.unlink()
    cut.write_bytes(b"")
    assert "; 2 made now, 18 were there" in call("--src", src, "--dst", "out", "--link", "copy")[1]
    assert contents(tmp_path / "out") == expected(src, os.listdir(tmp_path / "out" / "train"))


# Resizing


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (64, 64), (30, 41), (256, 999)])
def test_the_short_side_as_in_torchvision(size):
    from torchvision.transforms import Resize

    image = Image.open(io.BytesIO(picture(size=size)))
    made = images.resized(image, (256,))
    assert min(made.size) == 256
    np.testing.assert_array_equal(made, Resize(256)(image))


@pytest.mark.parametrize(("resize", "sizes"), [("16", {(21, 16), (16, 21)}), ("12x20", {(12, 20)})])
def test_resized_files(call, src, tmp_path, resize, sizes):
    tall = src / "train" / WNIDS[0] / "tall.JPEG"
    tall.write_bytes(picture(size=(30, 40)))
    assert call("--src", src, "--dst", "out", "--resize", resize, script=ALL)[0] == 0
    found = [opened(file) for file in (tmp_path / "out").rglob("*.JPEG")]
    assert len(found) == 31
    assert {image.size for image in found} == sizes
    assert {(image.mode, image.format) for image in found} == {("RGB", "JPEG")}


def test_quality_makes_smaller_files(call, src, tmp_path):
    totals = []
    for quality in (None, 95, 20):
        flags = [] if quality is None else ["--quality", quality]
        assert call("--src", src, "--dst", f"out{quality}", "--resize", 64, *flags)[0] == 0
        totals.append(sum(map(len, contents(tmp_path / f"out{quality}").values())))
    assert totals[0] == totals[1] > 1.5 * totals[2]


KINDS = {
    "grey.JPEG": {"mode": "L"},
    "cmyk.JPEG": {"mode": "CMYK"},
    "png.JPEG": {"form": "PNG"},
    "alpha.JPEG": {"mode": "RGBA", "form": "PNG"},
    "greyalpha.png": {"mode": "LA", "form": "PNG"},
    "palette.JPEG": {"mode": "P", "form": "PNG", "transparency": bytes(range(100))},
    "bits.png": {"mode": "1", "form": "PNG"},
    "gif.JPEG": {"mode": "P", "form": "GIF"},
}


def test_every_kind_of_image_becomes_rgb(call, src, tmp_path):
    for name, kind in KINDS.items():
        (src / "train" / WNIDS[0] / name).write_bytes(picture(5, **kind))
    status, _, error = call("--src", src, "--dst", "out", "--resize", "30", script=ALL)
    assert (status, error) == (0, "")
    for name, kind in KINDS.items():
        with Image.open(io.BytesIO(picture(5, **kind))) as original:
            plain = original.convert("RGB" if kind.get("mode") in ("L", "CMYK", "1") else "RGBA").convert("RGB")
        expected_file = io.BytesIO()
        plain.save(expected_file, "JPEG", quality=95)
        made = name if name.endswith(".JPEG") else f"{name}.JPEG"
        image = opened(tmp_path / "out" / "train" / WNIDS[0] / made)
        assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (40, 30))
        np.testing.assert_array_equal(image, opened(expected_file))


def test_exif_orientation_is_neither_applied_nor_kept(call, src, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = src / "train" / WNIDS[0] / "turned.JPEG"
    file.write_bytes(picture(size=(40, 20), exif=exif))
    assert opened(file).getexif()[0x0112] == 6
    assert call("--src", src, "--dst", "out", "--resize", 10, script=ALL)[0] == 0
    image = opened(tmp_path / "out" / "train" / WNIDS[0] / "turned.JPEG")
    assert image.size == (20, 10)
    assert 0x0112 not in image.getexif()


# Files that cannot be used


def spoil(folder):
    """Every kind of bad file, and what must be said about it."""
    good = picture(3, size=(300, 200))
    (folder / "cut.JPEG").write_bytes(good[: len(good) // 2])
    (folder / "empty.JPEG").write_bytes(b"")
    (folder / "text.JPEG").write_text("<html>not found</html>")
    (folder / "deep.png").write_bytes(picture(mode="I;16", form="PNG"))
    (folder / "list.txt").write_text("a list")
    (folder / "folder.JPEG").mkdir()
    (folder / "gone.JPEG").symlink_to("nowhere")
    return {"cut.JPEG": "damaged image (", "empty.JPEG": "not an image", "text.JPEG": "not an image",
            "deep.png": "more than 8 bits", "list.txt": "not the name of an image file", "folder.JPEG": "not a file",
            "gone.JPEG": "not a file"}  # fmt: skip


@pytest.mark.parametrize("flags", [["--resize", "16"], ["--check"], ["--link", "copy", "--check"]])
def test_bad_files_are_listed_and_skipped_and_all_else_is_done(call, src, tmp_path, flags):
    good = {name.split("/", 1)[1] for name in contents(src)}
    bad = spoil(src / "train" / WNIDS[1])
    for _ in range(2):
        status, out, error = call("--src", src, "--dst", "out", *flags, script=ALL)
        assert status == 1
        assert "18 images in train, 12 images in val" in out
        *lines, summary = error.splitlines()
        assert summary == f"{ALL}: the 7 above could not be used; all else is done"
        for name, reason in bad.items():
            assert any(line.startswith(f"train/{WNIDS[1]}/{name}: {reason}") for line in lines), error
        assert len(lines) == len(bad)
        assert {name.split("/", 1)[1] for name in contents(tmp_path / "out")} == good
    shutil.rmtree(src / "train" / WNIDS[1] / "folder.JPEG")
    for name in bad:
        (src / "train" / WNIDS[1] / name).unlink(missing_ok=True)
    assert call("--src", src, "--dst", "out", *flags, script=ALL)[::2] == (0, "")


def test_links_are_decoded_with_check_only_which_takes_bad_ones_out(call, src, tmp_path):
    (src / "train" / WNIDS[1] / "bad.JPEG").write_bytes(b"bad")
    link = tmp_path / "out" / "train" / WNIDS[1] / "bad.JPEG"
    assert call("--src", src, "--dst", "out", script=ALL)[0] == 0
    assert link.is_symlink()
    status, _, error = call("--src", src, "--dst", "out", "--check", script=ALL)
    assert status == 1
    assert error.startswith(f"train/{WNIDS[1]}/bad.JPEG: not an image\n")
    assert not link.is_symlink()
    assert (src / "train" / WNIDS[1] / "bad.JPEG").exists()


@pytest.mark.parametrize("flags", [["--resize", "64"], ["--link", "copy"]])
def test_check_makes_damaged_finished_files_again(call, src, tmp_path, flags):
    assert call("--src", src, "--dst", "out", *flags)[0] == 0
    before = contents(tmp_path / "out")
    victim = next((tmp_path / "out").rglob("*.JPEG"))
    victim.write_bytes(bytes(victim.stat().st_size))  # as after a power cut
    assert "; 0 made now" in call("--src", src, "--dst", "out", *flags)[1]
    assert "; 1 made now, 19 were there" in call("--src", src, "--dst", "out", *flags, "--check")[1]
    assert contents(tmp_path / "out") == before


def test_a_class_without_images_is_told(call, src):
    shutil.rmtree(src / "train" / WNIDS[2])
    (src / "train" / WNIDS[2]).mkdir()
    status, _, error = call("--src", src, "--dst", "out", script=ALL)
    assert (status, error.splitlines()[0]) == (1, f"train/{WNIDS[2]}: holds no images")


def test_clutter_is_ignored_silently(call, src, tmp_path):
    good = contents(src)
    for folder in (src, src / "train", src / "val", src / "train" / WNIDS[0], src / "val" / WNIDS[0]):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{WNIDS[0]}_0.JPEG"):
            (folder / name).write_bytes(b"clutter")
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "__MACOSX").mkdir()
    assert call("--src", src, "--dst", "out", "--check", script=ALL)[::2] == (0, "")
    assert contents(tmp_path / "out") == good


# Validation images that are not sorted, and Tiny-ImageNet


@pytest.mark.parametrize("where", ["archive in src", "folder in src", "--devkit archive", "--devkit folder"])
def test_unsorted_val_is_sorted_with_the_devkit(call, src, tmp_path, where):
    right = contents(src)
    flatten_val(src)
    place = src if where.endswith("src") else tmp_path
    archive, flags = make_devkit(place), []
    if "folder" in where:
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
        archive.unlink()
    if "--devkit" in where:
        flags = ["--devkit", place / DEVKIT if "folder" in where else archive]
    assert call("--src", src, "--dst", "out", *flags, script=ALL)[::2] == (0, "")
    assert contents(tmp_path / "out") == right


def test_a_hole_in_unsorted_val_moves_no_label_and_strays_are_listed(call, src, tmp_path):
    right = contents(src)
    flatten_val(src)
    make_devkit(src)
    (src / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    (src / "val" / "holiday.JPEG").write_bytes(picture())
    status, _, error = call("--src", src, "--dst", "out", script=ALL)
    assert (status, error.splitlines()[0]) == (1, "val/holiday.JPEG: nothing says which class it is")
    del right[f"val/{WNIDS[1]}/ILSVRC2012_val_00000002.JPEG"]
    assert contents(tmp_path / "out") == right


def test_images_beside_the_class_folders_are_listed(call, src):
    for split in ("train", "val"):
        (src / split / "loose.JPEG").write_bytes(picture())
        (src / split / "notes.txt").write_text("not an image")
    status, _, error = call("--src", src, "--dst", "out")
    assert status == 1
    assert error.splitlines()[:-1] == [f"{split}/loose.JPEG: lies in no class folder" for split in ("train", "val")]


def test_torchvision_reads_the_same_from_the_devkit(src, monkeypatch):
    from torchvision.datasets import imagenet

    from mnemonics.data.imagenet.labels import devkit_labels

    archive = make_devkit(src)
    monkeypatch.setattr(imagenet, "check_integrity", lambda *_: True)  # whose MD5 only the official archive has
    imagenet.parse_devkit_archive(src)
    labels = devkit_labels(archive, "--src")
    assert [labels[name] for name in sorted(labels)] == imagenet.load_meta_file(src)[1]
    assert sorted(labels.values()) == sorted(WNIDS * 2)


def test_a_truth_that_names_an_inner_node_of_wordnet_is_refused(call, src):
    flatten_val(src)
    archive = make_devkit(src)
    with tarfile.open(archive) as tar:
        tar.extractall(src, filter="data")
    (src / DEVKIT / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("7\n" * 12)
    status, _, error = call("--src", src, "--dst", "out")
    assert status == 2
    assert_one_line(error, f"--src {src}", "damaged or not the devkit")


def make_tiny(src):
    """Turn a tree into Tiny-ImageNet's: train/<wnid>/images/, val/images/ and val/val_annotations.txt."""
    lines = []
    for wnid in WNIDS:
        (src / "train" / wnid).rename(src / "moving")
        (src / "train" / wnid).mkdir()
        (src / "moving").rename(src / "train" / wnid / "images")
        (src / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
        lines += [f"{file.name}\t{wnid}\t0\t0\t62\t62\n" for file in (src / "val" / wnid).iterdir()]
    flatten_val(src)
    (src / "val").rename(src / "images")
    (src / "val").mkdir()
    (src / "images").rename(src / "val" / "images")
    (src / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize("nested", [True, False])
def test_tiny_imagenet(call, src, tmp_path, nested):
    right = contents(src)
    make_tiny(src)
    if not nested:
        for file in (src / "val" / "images").iterdir():
            file.rename(src / "val" / file.name)
        (src / "val" / "images").rmdir()
    assert call("--src", src, "--dst", "out", "--check", script=ALL)[::2] == (0, "")
    assert contents(tmp_path / "out") == right


# Archives


@pytest.fixture
def archives(src, tmp_path):
    return make_archives(tmp_path / "archives", src)


@pytest.mark.parametrize("script", [SUBSET, ALL])
def test_archives_are_extracted_once(call, archives, src, tmp_path, script):
    status, out, error = call("--src", archives, "--dst", "out", script=script)
    assert (status, error) == (0, "")
    wnids = WNIDS if script == ALL else prepare.draw(WNIDS, 4, 1993)
    assert contents(tmp_path / "out") == expected(src, wnids)
    assert set(os.listdir(tmp_path / "out")) == {".lock", "train", "val", *prepare_files()}
    assert f"; {len(wnids) * 5} made now" in out
    before = times(tmp_path / "out")
    assert f"; 0 made now, {len(wnids) * 5} were there" in call("--src", archives, "--dst", "out", script=script)[1]
    assert times(tmp_path / "out") == before


def prepare_files():
    return "wnids.txt", "wnids.txt.sha256", "prepared.json"


def test_archives_give_the_same_resized_files_as_folders(call, archives, src, tmp_path):
    assert call("--src", archives, "--dst", "a", "--resize", "20x20", "--check")[0] == 0
    assert call("--src", src, "--dst", "b", "--resize", "20x20")[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_train_as_folders_and_val_as_archive(call, archives, src, tmp_path):
    (archives / "ILSVRC2012_img_train.tar").unlink()
    (src / "train").rename(archives / "train")
    assert call("--src", archives, "--dst", "out", "--link", "hardlink", script=ALL)[::2] == (0, "")
    (archives / "train").rename(src / "train")
    assert contents(tmp_path / "out") == contents(src)


def test_nothing_in_an_archive_says_where_to_write(call, archives, tmp_path):
    content = picture(1)
    evil = [("../../evil.JPEG", content), ("/tmp/evil/abs.JPEG", content), ("a/..", content), ("sub/in.JPEG", content)]
    inner = [(f"x/{wnid}.tar", tar_of(evil)) for wnid in WNIDS]
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    assert call("--src", archives, "--dst", "out/put", script=ALL)[::2] == (0, "")
    for wnid in WNIDS:
        assert sorted(os.listdir(tmp_path / "out" / "put" / "train" / wnid)) == ["abs.JPEG", "evil.JPEG", "in.JPEG"]
    assert os.listdir(tmp_path / "out") == ["put"]
    assert not (tmp_path / "evil.JPEG").exists()


PLAIN_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


@pytest.mark.parametrize(
    ("name", "how"),
    [(f"{DEVKIT}.tar.gz", how) for how in ("cut in a file", "cut in the checksum", "text", "empty")]
    + [(name, how) for name in PLAIN_TARS for how in ("cut in a file", "cut between files", "text", "empty", "gzip")],
)
def test_damaged_archives_are_refused_before_anything_is_drawn(call, archives, tmp_path, name, how):
    path = archives / name
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[min(2, len(tar.getmembers()) - 1)].offset
    cut = {"cut in a file": whole[: len(whole) // 2 + 100], "cut between files": whole[:third], "text": b"<html>" * 999,
           "empty": b"", "gzip": gzip.compress(whole), "cut in the checksum": whole[:-6]}[how]  # fmt: skip
    path.write_bytes(cut)
    status, out, error = call("--src", archives, "--dst", "out")
    assert (status, out) == (2, "")
    assert_one_line(error, f"--src {archives}", name, "download it again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["header", "first header", "image", "cut"])
def test_a_damaged_class_in_an_archive_is_listed_and_the_others_are_done(call, archives, src, tmp_path, where):
    path = archives / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as outer:
        member = outer.getmember(f"{WNIDS[2]}.tar")
        with tarfile.open(fileobj=outer.extractfile(member)) as inner:
            second = inner.getmembers()[1]
    content = bytearray(path.read_bytes())
    start = (
        member.offset_data + {"header": second.offset, "first header": 0, "image": second.offset_data, "cut": 0}[where]
    )
    content[start : start + 400] = b"\xff" * 400
    if where == "cut":
        wnids = [(f"{w}.tar", content_of(src, w)[: None if w != WNIDS[2] else 3 * 512]) for w in WNIDS]
        content = tar_of(wnids)
    path.write_bytes(content)
    status, _, error = call("--src", archives, "--dst", "out", "--check", script=ALL)
    assert status == 1
    assert error.startswith(
        f"train/{WNIDS[2]}{'/' + second.name if where == 'image' else ': the archive of this class'}"
    )
    assert error.count("\n") == 2
    made = contents(tmp_path / "out")
    assert {k: v for k, v in made.items() if f"train/{WNIDS[2]}" not in k} == {
        k: v for k, v in contents(src).items() if f"train/{WNIDS[2]}" not in k
    }


def content_of(src, wnid):
    return tar_of((file.name, file.read_bytes()) for file in sorted((src / "train" / wnid).iterdir()))


# Mistakes and full disks


MISTAKES = [
    ("--src nowhere", ["--src nowhere", "there is no such folder", "train/<wnid>"]),
    ("--src empty", ["--src empty", "holds neither train/ nor ILSVRC2012_img_train.tar"]),
    ("--src src --num_classes 7", ["--num_classes 7", "6 classes", "at most 6 would work"]),
    ("--src src --num_classes 0", ["--num_classes 0", "must be from 1"]),
    ("--src src --seed -1", ["--seed -1", "must be from 0"]),
    ("--src src --jobs 0", ["--jobs 0", "must be from 1"]),
    ("--src src --jobs many", ["--jobs", "many"]),
    ("--src src --resize 256x", ["--resize 256x", "256x256"]),
    ("--src src --resize 0", ["--resize 0", "256x256"]),
    ("--src src --resize 99999", ["--resize 99999", "65500"]),
    ("--src src --quality 90", ["--quality 90", "--resize"]),
    ("--src src --quality 101 --resize 8", ["--quality 101", "100"]),
    ("--src src --link symlink --resize 8", ["--link symlink", "leave out"]),
    ("--src src --link soft", ["--link", "soft", "symlink"]),
    ("--src src --dst src/out", ["--dst src/out", "lies in --src src"]),
    ("--src src --dst src", ["--dst src", "lies in --src src"]),
    ("--src src --dst file", ["--dst file", "is not a folder"]),
    ("--src src --dst foreign", ["--dst foreign", "holds train/ but no wnids.txt"]),
    ("--src src --devkit src", ["--devkit src", "sorted by class already"]),
    ("--src flat", ["--src flat", "ILSVRC2012_devkit_t12.tar.gz", "--devkit", "val/<wnid>/"]),
    ("--src flat --devkit nowhere", ["--devkit nowhere", "is not there", "ILSVRC2012_devkit_t12.tar.gz"]),
    ("--src flat --devkit file", ["--devkit file", "damaged or not the devkit"]),
    ("--src odd", ["--src odd", "train/cats is not a class"]),
    ("--src half --num_classes 6", ["--src half", "1 of the 6 classes have no validation images", WNIDS[0]]),
    ("--src tiny", ["--src tiny", "val_annotations.txt", "line 1 is not like"]),
    ("--src none", ["--src none", "holds no classes"]),
    ("--src archives --link symlink", ["--link symlink", "extracted"]),
    ("--src badtrain", ["--src badtrain", "holds cats.tar, not only <wnid>.tar"]),
    ("--sources src", ["--sources"]),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """The folders that MISTAKES name."""
    root = tmp_path_factory.mktemp("mistakes")
    src = make_tree(root / "src")
    make_archives(root / "archives", src)
    for name in ("flat", "odd", "half", "tiny", "none"):
        shutil.copytree(src, root / name)
    flatten_val(root / "flat")
    (root / "odd" / "train" / "cats").mkdir()
    shutil.rmtree(root / "half" / "val" / WNIDS[0])
    flatten_val(root / "tiny")
    (root / "tiny" / "val" / "val_annotations.txt").write_text("val_0.JPEG cat\n")
    shutil.rmtree(root / "none" / "train")
    for folder in ("none/train", "empty", "foreign/train", "badtrain/val"):
        (root / folder).mkdir(parents=True)
    (root / "badtrain" / "ILSVRC2012_img_train.tar").write_bytes(tar_of([("cats.tar", b"")]))
    (root / "file").write_text("a file")
    return root


@pytest.mark.parametrize(("flags", "parts"), MISTAKES, ids=[flags for flags, _ in MISTAKES])
def test_mistakes_end_at_once_with_one_line(call, mistakes, flags, parts):
    before = sorted(mistakes.rglob("*"))
    status, out, error = call(*flags.split(), *([] if "--dst" in flags else ["--dst", "out"]), cwd=mistakes)
    assert (status, out) == (2, "")
    assert_one_line(error, f"{SUBSET}: ", *parts)
    assert sorted(mistakes.rglob("*")) == before


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([], ["--seed", "1"], "lists other classes"),
        ([], ["--num_classes", "3"], "lists other classes"),
        ([], ["--link", "copy"], "made with --link symlink"),
        ([], ["--resize", "16"], "made with no --resize"),
        (["--resize", "16"], ["--resize", "16x16"], "made with --resize 16;"),
        (["--resize", "16"], ["--resize", "16", "--quality", "90"], "made with --quality 95"),
        (["--resize", "16"], [], "made with --resize 16;"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(call, src, tmp_path, first, second, said):
    assert call("--src", src, "--dst", "out", *first)[0] == 0
    before = times(tmp_path / "out")
    status, _, error = call("--src", src, "--dst", "out", *second)
    assert status == 2
    assert_one_line(error, "--dst out", said, "name another folder")
    assert times(tmp_path / "out") == before


def test_a_record_that_is_damaged_is_written_again(call, src, tmp_path):
    assert call("--src", src, "--dst", "out")[0] == 0
    record = tmp_path / "out" / "prepared.json"
    right = record.read_bytes()
    record.write_bytes(right[:20])
    assert call("--src", src, "--dst", "out")[0] == 0
    assert record.read_bytes() == right


def test_a_second_run_at_the_same_time_is_refused(call, src, tmp_path):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, error = call("--src", src, "--dst", "out")
    assert status == 2
    assert_one_line(error, "--dst out", "another run is writing there")
    assert call("--src", src, "--dst", "out")[0] == 0


@pytest.mark.parametrize("flags", [["--link", "copy"], ["--resize", "1200", "--jobs", "2"]])
def test_a_full_disk_ends_with_one_line_and_can_be_continued(call, src, tmp_path, flags):
    big = src / "train" / WNIDS[3] / "big.JPEG"
    big.write_bytes(picture(size=(900, 900), quality=100))
    limit = 20_000  # bytes per file stand in for a disk: the write of a file breaks off in the same way
    process = started("--src", src, "--dst", tmp_path / "out", *flags, script=ALL,
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # fmt: skip
    status, _, error = finished(process)
    assert status == 1
    assert_one_line(error, "File too large", "the same command continues")
    sizes = {file: len(file.read_bytes()) for file in (tmp_path / "out").rglob("*.JPEG")}
    assert all(size < limit for size in sizes.values())
    assert not (tmp_path / "out" / ".partial").exists()
    if "copy" in flags:
        assert sizes
        assert call("--src", src, "--dst", "out", *flags, script=ALL)[0] == 0
        assert contents(tmp_path / "out") == contents(src)


def test_a_folder_without_permission_ends_with_one_line(call, src, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)  # real permissions do not stop root
        status, _, error = call("--src", src, "--dst", "out")
    assert status == 1
    assert_one_line(error, f"{SUBSET}: out: Permission denied")


# Interruptions


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A source that takes a while to resize."""
    root = make_tree(tmp_path_factory.mktemp("slow") / "src", train=0, val=1)
    content = picture(size=(1500, 1000))
    for wnid in WNIDS:
        for number in range(12):
            (root / "train" / wnid / f"{wnid}_{number}.JPEG").write_bytes(content)
    return root


def wait_until(ready, process=None):
    for _ in range(3000):
        if ready():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("it never came to that")


def descendants(pid):
    """The processes that a process has started and that still run."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def running(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def half_done(slow, dst):
    process = started("--src", slow, "--dst", dst, "--resize", "200", "--jobs", "2", script=ALL)
    wait_until(lambda: len(list(dst.rglob("train/*/*.JPEG"))) >= 5, process)
    return process


def test_killed_midway_and_run_again(call, slow, tmp_path):
    dst = tmp_path / "out"
    with half_done(slow, dst) as process:
        helpers = descendants(process.pid)
        assert len(helpers) >= 2
        process.kill()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not any(map(running, helpers)))
    there = {file: file.lstat().st_mtime_ns for file in dst.rglob("*.JPEG")}
    assert 5 <= len(there) < 78
    for file in there:
        assert opened(file).size in {(300, 200), (266, 200)}
    assert (dst / ".partial").is_dir()
    (dst / ".partial" / "left").write_bytes(b"\xff\xd8 half an image")
    status, out, error = call("--src", slow, "--dst", dst, "--resize", "200", script=ALL)
    assert (status, error) == (0, "")
    assert f"; {78 - len(there)} made now, {len(there)} were there" in out
    assert not (dst / ".partial").exists()
    assert {file: file.lstat().st_mtime_ns for file in there} == there
    assert len(contents(dst)) == 78


def test_interrupted_by_the_user(slow, tmp_path):
    dst = tmp_path / "out"
    process = half_done(slow, dst)
    helpers = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    status, _, error = finished(process)
    assert status == 130
    assert_one_line(error, "interrupted; the same command continues")
    wait_until(lambda: not any(map(running, helpers)))
    assert len(list(dst.rglob("*.JPEG"))) < 78
    assert not (dst / ".partial").exists()


def test_a_helper_that_is_killed_is_told(slow, tmp_path):
    process = half_done(slow, tmp_path / "out")
    workers = [p for p in descendants(process.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    status, _, error = finished(process)
    assert status == 1
    assert_one_line(error, "--jobs", "with fewer, the same command continues")


# The real thing


def test_real_images_linked_and_loaded_by_torchvision(call, imagenet_mini, tmp_path):
    from torchvision.datasets import ImageFolder

    assert call("--src", imagenet_mini, "--dst", "out", "--num_classes", 5, "--check")[::2] == (0, "")
    drawn = (tmp_path / "out" / "wnids.txt").read_text().split()
    assert drawn == prepare.draw(os.listdir(imagenet_mini / "train"), 5, 1993)
    assert contents(tmp_path / "out") == expected(imagenet_mini, drawn)
    for split, count in (("train", 150), ("val", 50)):
        loaded = ImageFolder(tmp_path / "out" / split)
        assert (loaded.classes, len(loaded)) == (sorted(drawn), count)


def test_real_images_resized_by_several_processes(imagenet_mini, tmp_path):
    process = started("--src", imagenet_mini, "--dst", tmp_path / "out", "--resize", "32", "--jobs", "2", script=ALL)
    status, out, error = finished(process)
    assert (status, error) == (0, "")
    assert "600 images in train, 200 images in val; 800 made now" in out
    for name in contents(imagenet_mini):
        made = opened(tmp_path / "out" / name)
        assert (made.size, made.mode) == ((32, 32), "RGB")
    right = opened(imagenet_mini / name).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(made, float) - np.asarray(right, float)).mean() < 4


@pytest.mark.parametrize("script", [SUBSET, ALL])
def test_help_names_every_flag(call, script):
    status, out, _ = call("--help", script=script)
    assert status == 0
    flags = ["--src", "--dst", "--resize", "--quality", "--link", "--check", "--devkit", "--jobs"]
    for flag in flags + ["--num_classes", "--seed"] * (script == SUBSET):
        assert f"\n  {flag} " in out
    assert "extracted" in out
