"""Data that is odd, damaged or hostile, and processes that are killed: right numbers, or one line that says why not."""

import contextlib
import errno
import os
import shutil
import struct
import subprocess
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_folders import TINY, picture, pictures, read, training_images
from PIL import ExifTags, Image

import main
from mnemonics.data import files, folders
from mnemonics.data.images import DataError, read_rgb
from mnemonics.engine.errors import UsageError


@pytest.fixture
def tree(tmp_path):
    """Two classes, 3 training and 2 validation images each."""
    return pictures(tmp_path)


def mistake(root, size=16):
    """What is told about the folder, in one line that names the flag."""
    with pytest.raises(UsageError) as error:
        read(root, size)
    assert str(error.value).startswith(f"--data_dir {root}: ")
    assert str(error.value).isprintable()
    return str(error.value)


# kinds of images

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
GREYS, RGBS = np.stack([GREY] * 3, axis=2), np.stack([GREY, GREY[::-1], GREY.T], axis=2)
BLACK_AND_WHITE = np.where(GREYS > 100, 255, 0)
grey, rgb = Image.fromarray(GREY), Image.fromarray(RGBS)
KINDS = [
    ("1.png", Image.fromarray(GREY > 100), {}, BLACK_AND_WHITE),
    ("L.png", grey, {}, GREYS),
    ("LA.png", grey.convert("LA"), {}, GREYS),
    ("P.png", grey.convert("RGB").quantize(256), {}, GREYS),
    ("P transparent.png", grey.convert("RGB").quantize(64), {"transparency": bytes(range(64))}, GREYS),
    ("RGB.png", rgb, {}, RGBS),
    ("RGBA.png", Image.fromarray(np.dstack([RGBS, GREY])), {}, RGBS),
    ("RGB transparent.png", rgb, {"transparency": (0, 0, 0)}, RGBS),
    ("16 bits.png", Image.fromarray(GREY.astype(np.uint16) * 256 + 255), {}, GREYS),
    ("16 bits.tif", Image.fromarray(GREY.astype(np.uint16) * 256 + 7), {}, GREYS),
    ("16 bits.pgm", Image.fromarray(GREY.astype(np.uint16) * 256), {}, GREYS),
    ("CMYK.tif", Image.fromarray(np.dstack([255 - RGBS, 0 * GREY]), "CMYK"), {}, RGBS),
    ("lossless.webp", rgb, {"lossless": True}, RGBS),
    ("RGB.bmp", rgb, {}, RGBS),
    ("a GIF.jpg", grey, {"format": "GIF"}, GREYS),
    ("a PNG.JPEG", rgb, {"format": "PNG"}, RGBS),
    ("fractions.tif", Image.fromarray(GREY.astype(np.float32)), {}, None),
    ("many bits.tif", Image.fromarray(GREY.astype(np.int32) << 20), {}, None),
    ("negative.tif", Image.fromarray(GREY.astype(np.int32) - 9), {}, None),
]


@pytest.mark.parametrize(("name", "image", "options", "expected"), KINDS, ids=[name for name, *_ in KINDS])
def test_images_of_every_kind_are_rgb_or_refused(name, image, options, expected, tmp_path):
    image.save(tmp_path / name, **options)
    if expected is None:
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image \(.*range is unknown"):
            read_rgb(tmp_path / name)
    else:
        decoded = read_rgb(tmp_path / name)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), expected)


def test_twelve_bits(tmp_path):
    """Written by hand: Pillow reads such files but writes none."""
    values = (GREY.astype(np.uint16) << 4) + 9
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    tags = {256: 8, 257: 8, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: packed.size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    start = struct.pack("<2sHI", b"II", 42, 8 + packed.size)
    (tmp_path / "1.tif").write_bytes(start + packed.astype(np.uint8).tobytes() + directory)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "1.tif")), GREYS)


def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch):
    """For PostScript, whatever the file is called, Pillow would start Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started another program"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "1.jpg").write_bytes(content)
    with pytest.raises(DataError, match="cannot identify"):
        read_rgb(tmp_path / "1.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "grey.tif", "a.tif"])
def test_images_are_turned_as_viewers_turn_them(tree, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255
    image = Image.fromarray(stored)
    (image.convert("L") if name == "grey.tif" else image).save(tree / "train/ape" / name, exif=exif, lossless=True)
    seen = np.asarray(read_rgb(tree / "train/ape" / name))
    assert np.abs(seen.astype(int) - np.rot90(stored, -1)).mean() < 9
    assert read(tree).notices == ("1 of 11 images are turned, as their EXIF orientation says",)


def test_class_names_in_two_forms_of_unicode_are_one(tree):
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        (tree / split / "bee").rename(tree / split / name)
    data = read(tree)
    assert data.class_names == ("ape", "caf\u00e9")
    assert data.test_images.loaded().shape[0] == 4


# damaged images


def broken_png(width, height):
    """A whole header, and hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


DAMAGED = [
    (b"", "cannot identify"),
    (b"\x89PNG\r\n\x1a\n", "cannot identify"),
    (b"P5 0 0 255\n", "."),
    (b"II*\0\xff\xff\xff\xff", "."),
    (b"GIF89a\0\0\0\0", "."),
    (broken_png(20, 20), "."),
    (broken_png(50_000, 50_000), r"Image size \(2500000000 pixels"),
    (b"P6 1 60000 255\n" + bytes(180_000), "1x60000 pixels: too long and thin"),  # it would fill the memory
]


@pytest.mark.parametrize(("content", "reason"), DAMAGED)
def test_damaged_files_are_named(tree, content, reason):
    (tree / "train/bee/1.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"train/bee/1\.png cannot be .* as an image \(.*{reason}") as error:
        training_images(tree, 224).loaded()
    assert str(error.value).isprintable()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_after_it_was_listed(tree, workers):
    images = training_images(tree, 16, workers)
    (tree / "train/bee/1.png").unlink()
    with pytest.raises(UsageError, match=r"--data_dir: .*train/bee/1\.png.*No such file"):
        images.loaded()


@pytest.mark.parametrize("one_class", [True, False])
def test_the_real_command_names_what_is_wrong(tmp_path, one_class, told):
    tree = pictures(tmp_path, ("ape",) if one_class else ("ape", "bee", "cat"))
    if not one_class:
        (tree / "train/ape/2.png").write_bytes(b"\xff\xd8 no image")
    error = told(main.main, *TINY, "--data_dir", tree, "--out", tmp_path / "run")
    assert ("at least 2 classes" if one_class else "ape/2.png cannot be read as an image") in error


# what is listed


def link(place, target="gone"):
    return lambda root: (root / place).symlink_to(root / target)


def too_deep(root):
    """Folders within folders can be deeper than any path that the system takes."""
    with contextlib.chdir(root / "train/ape"):
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)


ENDS_OF_RUNS = {
    "no test folder": (lambda root: shutil.rmtree(root / "val"), "{} has no train/<class>/* and val/<class>/*"),
    "classes differ": (lambda root: shutil.rmtree(root / "val/bee"), "{}/val lacks 1 of the classes in {}/train, for"),
    "class more": (lambda root: picture(root / "val/cat/1.png", (9, 9)), "add images to train/cat, or remove val/cat"),
    "one name": (lambda root: [(root / "train" / name).mkdir() for name in ("é", "e\u0301")], "one name in Unicode"),
    "no format": (lambda root: [p.rename(f"{p}.heic") for p in (root / "train/bee").iterdir()], "(3 .heic) to JPEG"),
    "too large": (lambda root: (root / "val/bee/1.png").write_bytes(broken_png(20_000, 10_000)), "(200000000 pixels)"),
    "no classes": (lambda root: [shutil.rmtree(p) for p in root.glob("*/*")], "{}/train has no folders"),
    "empty class": (lambda root: [p.unlink() for p in (root / "train/bee").iterdir()], "{}/train/bee holds no images"),
    "first image": (lambda root: (root / "train/ape/0.png").write_bytes(b"junk"), "{}/train/ape/0.png cannot be read"),
    # a link to nowhere may have been an image, or a whole class
    "lost image": (link("train/ape/9.png"), "{}/train/ape/9.png: No such file or directory"),
    "lost class": (link("train/cat"), "{}/train/cat: No such file or directory"),
    "lost test class": (link("val/cat"), "{}/val/cat: No such file or directory"),
    "a pipe, which would never end": (lambda root: os.mkfifo(root / "train/ape/9.png"), "9.png: it is no file"),
    "itself": (link("val/bee/me", "val/bee/me"), "Too many levels of symbolic links"),
    "a circle": (link("train/ape/again", "train/ape"), "{}/train/ape/again leads to a folder that it is in"),
    "too deep": (too_deep, "File name too long"),
}


@pytest.mark.parametrize("case", ENDS_OF_RUNS)
def test_folders_that_end_the_run(tree, case):
    damage, words = ENDS_OF_RUNS[case]
    damage(tree)
    assert words.format(tree, tree) in mistake(tree, None)


@pytest.mark.parametrize("place", ["train", "train/bee", "train/bee/below", "val/ape"])
def test_a_folder_that_cannot_be_listed_ends_the_run(tree, place, monkeypatch):
    """Else its images, or a class, would be missing without a word. (The tests may run as root, who may read all.)"""
    picture(tree / "train/bee/below/1.png", (20, 20))
    scandir = os.scandir

    def refusing(path):
        if Path(path) == tree / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert f"{tree / place}: Permission denied" in mistake(tree)


@pytest.mark.parametrize("make_link", [os.link, os.symlink])
def test_files_that_are_in_training_and_in_test(tree, make_link):
    make_link(tree / "train/ape/0.png", tree / "train/ape/again.png")
    assert read(tree).notices == ()
    make_link(tree / "train/bee/2.png", tree / "val/ape/trained.png")
    told = f"1 files in {tree} are in training and in test, as links: train/bee/2.png and val/ape/trained.png"
    assert read(tree).notices == (f"{told} for example",)
    shutil.rmtree(tree / "val")
    (tree / "val").symlink_to(tree / "train")
    assert read(tree).notices[0].startswith("6 files")


def test_equal_numbers_of_different_files_are_no_links(tree, monkeypatch):
    """As on two disks, and on network disks that give all files of a folder the same number."""
    monkeypatch.setattr(folders, "inode_of", lambda entry: 2**32 - 1)
    assert read(tree).notices == ()
    os.link(tree / "train/ape/0.png", tree / "val/bee/0 again.png")
    assert read(tree).notices[0].startswith("1 files")


def test_the_system_is_not_asked_about_each_file(tree, monkeypatch):
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    read(tree)
    assert asked
    assert not [path for path in asked if path.endswith(".png")]


def test_names_that_no_terminal_shows_are_told_in_one_line(tree):
    """Line breaks, escape sequences and bytes that are no UTF-8 in the names of classes and files."""
    odd = os.fsdecode(b"\xe4\n\x1b[31m")
    for split in ("train", "val"):
        picture(tree / split / odd / "1.png", (20, 20))
    picture(tree / "train" / odd / f"{odd}.png", (20, 20))
    os.link(tree / "train" / odd / "1.png", tree / "val" / odd / "again.png")
    data = read(tree)
    assert data.class_names == ("ape", "bee", r"\udce4\n\x1b[31m")
    assert data.notices[0].isprintable()
    (tree / "train" / odd / f"{odd}.png").write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        data.train_images.loaded()
    assert str(error.value).isprintable()


# worker processes


def test_a_lost_worker_is_told_of_in_one_line(tmp_path):
    tree = pictures(tmp_path, ("ape", "bee", "cat"))
    command = [sys.executable, Path(__file__).parents[1] / "lose_workers.py", tree, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    *_, told = (line.removeprefix("main.py: ") for line in done.stderr.splitlines() if line.startswith("main.py: "))
    status, handing_over, while_busy, at_start = done.stdout.splitlines()[-4:]
    assert status == "status 2"
    for line, words in ((handing_over, "EOFError"), (while_busy, "exited unexp"), (at_start, "Resource temp")):
        assert words in line
    for line in (told, handing_over, while_busy, at_start):
        assert "--num_workers 2: a process that decodes images was lost (" in line
        assert "--num_workers 0" in line


def test_other_errors_of_a_loader_stay_what_they_are():
    error = RuntimeError("Caught TypeError in DataLoader worker process 0.")
    assert files.lost_worker(error, 2) is error


def test_too_little_shared_memory_is_told_before_the_start(tree, tmp_path, monkeypatch, told):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1024))
    flags = ("--data_dir", tree, "--out", tmp_path / "run", "--nb_cl_fg", 1, "--num_workers", 2)
    said = told(main.main, *TINY, *flags)
    assert all(words in said for words in ("--num_workers 2", "/dev/shm", "--shm-size", "--num_workers 0"))
