"""Data that is odd, damaged or hostile, and processes that are killed: right numbers, or one line that says why not."""

import errno
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_files import TINY, picture, preprocessing, read

import main
from mnemonics.data import files, folders
from mnemonics.data.batches import LabelledImages, StreamedBatches
from mnemonics.data.files import Decoder
from mnemonics.data.images import ImageError, read_rgb
from mnemonics.engine.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GREY, GREY[::-1], GREY.T], axis=2)


@pytest.fixture
def tree(tmp_path):
    """Two classes, 3 training and 2 validation images each."""
    for split, count in (("train", 3), ("val", 2)):
        for c, name in enumerate(("ape", "bee")):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", (20, 20), 10 * c + i)
    return tmp_path


def mistake(root, size=16):
    """What is told about the folder, in one line that names the flag."""
    with pytest.raises(UsageError) as error:
        read(root, size)
    assert str(error.value).startswith(f"--data_dir {root}: ")
    assert str(error.value).isprintable()
    return str(error.value)


# kinds of images

GREYS, RGBS = np.stack([GREY] * 3, axis=2), COLOURS
KINDS = {
    "1.png": (Image.fromarray(GREY > 100), {}, np.stack([np.where(GREY > 100, 255, 0)] * 3, axis=2)),
    "L.png": (Image.fromarray(GREY), {}, GREYS),
    "LA.png": (Image.fromarray(GREY).convert("LA"), {}, GREYS),
    "P.png": (Image.fromarray(GREY).convert("RGB").quantize(256), {}, GREYS),
    "P with transparency.png": (
        Image.fromarray(GREY).convert("RGB").quantize(64),
        {"transparency": bytes(range(64))},
        GREYS,
    ),
    "RGB.png": (Image.fromarray(COLOURS), {}, RGBS),
    "RGBA.png": (Image.fromarray(np.dstack([COLOURS, GREY])), {}, RGBS),
    "RGB with transparency.png": (Image.fromarray(COLOURS), {"transparency": (0, 0, 0)}, RGBS),
    "16 bits.png": (Image.fromarray(GREY.astype(np.uint16) * 256 + 255), {}, GREYS),
    "16 bits.tif": (Image.fromarray(GREY.astype(np.uint16) * 256 + 7), {}, GREYS),
    "16 bits.pgm": (Image.fromarray(GREY.astype(np.uint16) * 256), {}, GREYS),
    "CMYK.tif": (Image.fromarray(np.dstack([255 - COLOURS, 0 * GREY]), "CMYK"), {}, RGBS),
    "lossless.webp": (Image.fromarray(COLOURS), {"lossless": True}, RGBS),
    "RGB.bmp": (Image.fromarray(COLOURS), {}, RGBS),
    "a GIF.jpg": (Image.fromarray(GREY), {"format": "GIF"}, GREYS),
    "a PNG.JPEG": (Image.fromarray(COLOURS), {"format": "PNG"}, RGBS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_rgb(kind, tmp_path):
    image, options, expected = KINDS[kind]
    image.save(tmp_path / kind, **options)
    decoded = read_rgb(tmp_path / kind)
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_kind_are_rgb(mode, tmp_path):
    smooth = Image.new("RGB", (8, 8), (200, 120, 40)).convert(mode)
    smooth.save(tmp_path / "1.jpg", quality=100)
    difference = np.asarray(read_rgb(tmp_path / "1.jpg")).astype(int) - np.asarray(smooth.convert("RGB"))
    assert abs(difference).max() <= 3


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


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("fractions.tif", Image.fromarray(GREY.astype(np.float32)), "range is unknown"),
        ("many bits.tif", Image.fromarray(GREY.astype(np.int32) << 20), "range is unknown"),
        ("negative.tif", Image.fromarray(GREY.astype(np.int32) - 9), "range is unknown"),
    ],
)
def test_images_without_a_known_range_are_refused(name, image, words, tmp_path):
    image.save(tmp_path / name)
    with pytest.raises(ImageError, match=rf"{name} cannot be read as an image \(.*{words}"):
        read_rgb(tmp_path / name)


def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch):
    """For PostScript, whatever the file is called, Pillow would start Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started another program"))
    (tmp_path / "1.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ImageError, match="cannot identify"):
        read_rgb(tmp_path / "1.jpg")


def huge_png(path, width, height):
    """A small file that says it is large."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99))))
    chunks = [
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in (*parts, (b"IEND", b""))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_images_of_absurd_size(tree):
    huge_png(tree / "train/ape/0.png", 50_000, 50_000)
    assert "train/ape/0.png cannot be read as an image (Image size (2500000000 pixels)" in mistake(tree, None)
    with pytest.raises(UsageError, match=r"train/ape/0\.png cannot be read as an image \(Image size"):
        read(tree, 16).train[0].loaded()


def test_a_long_and_thin_image_is_refused_where_it_would_fill_the_memory(tree):
    Image.new("RGB", (1, 60_000)).save(tree / "train/ape/0.png")
    with pytest.raises(UsageError, match=r"train/ape/0\.png cannot be used as an image \(1x60000 pixels: too long"):
        read(tree, 224).train[0].loaded()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n", "cannot identify"),
        (b"P5 0 0 255\n", "."),
        (b"II*\0\xff\xff\xff\xff", "."),
        (b"GIF89a\0\0\0\0", "."),
    ],
)
def test_damaged_files_are_named(tree, content, reason):
    (tree / "train/bee/1.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"train/bee/1\.png cannot be read as an image \(.*{reason}") as error:
        read(tree).train[0].loaded()
    assert str(error.value).isprintable()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_after_it_was_listed(tree, workers):
    images = read(tree, 16, workers).train[0]
    (tree / "train/bee/1.png").unlink()
    for use in (images.loaded, images.fingerprint):
        with pytest.raises(UsageError, match=r"--data_dir: .*train/bee/1\.png cannot be read .*No such file"):
            use()


# what is listed


def test_a_folder_called_like_an_image_is_a_folder(tree):
    picture(tree / "train/ape/x.jpg/deep.png", (20, 20))
    data = read(tree)
    assert data.train[0].names[3] == b"train/ape/x.jpg/deep.png"
    assert data.train[0].loaded().shape == (7, 3, 32, 32)


def test_files_beside_the_class_folders_are_told_of(tree):
    picture(tree / "train" / "stray.png", (20, 20))
    assert read(tree).notices == (f"1 files in {tree} are no images by their names, or in no class: ignored",)


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
    assert f"{tree / place} cannot be read (Permission denied)" in mistake(tree)


@pytest.mark.parametrize("place", ["train/ape/9.png", "train/cat", "val/cat"])
def test_a_link_to_nowhere_ends_the_run(tree, place):
    """It may have been an image, or a whole class."""
    (tree / place).symlink_to(tree / "gone")
    assert f"{tree / place} cannot be read (No such file or directory)" in mistake(tree)


def test_a_pipe_ends_the_run_instead_of_waiting_for_ever(tree):
    os.mkfifo(tree / "train/ape/9.png")
    assert f"{tree / 'train/ape/9.png'} cannot be read (it is no file)" in mistake(tree)


def test_links_in_circles(tree):
    (tree / "train/ape/again").symlink_to(tree / "train/ape")
    (tree / "train/ape/all").symlink_to(tree)
    data = read(tree)
    assert len(data.train[0].names) == 3 + (3 + 2 + 2) + 3  # ape, in it all that is not ape again, bee
    assert f"links in {tree} lead to a folder that they are in" in data.notices[0]
    (tree / "train/bee/self").symlink_to(tree / "train/bee/self")
    assert "Too many levels of symbolic links" in mistake(tree)


def test_a_path_that_is_too_long_ends_the_run(tree):
    """Folders within folders can be deeper than any path that the system takes."""
    inside = os.open(tree / "train/ape", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=inside)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)
    assert "File name too long" in mistake(tree)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_files_that_are_there_twice(tree, link):
    assert read(tree).notices == ()
    link(tree / "train/ape/0.png", tree / "train/ape/again.png")
    assert twice(tree) == (1, 0, 0, "train/ape/0.png and train/ape/again.png")
    link(tree / "train/ape/1.png", tree / "train/bee/ape.png")
    assert twice(tree) == (2, 0, 1, "train/ape/1.png and train/bee/ape.png")
    link(tree / "train/bee/2.png", tree / "val/bee/trained.png")
    assert twice(tree) == (3, 1, 1, "train/bee/2.png and val/bee/trained.png")


def twice(root):
    """What the notice says: (files, in training and test, in several classes, example)."""
    (notice,) = read(root).notices
    start, more, across, mixed, example = (part.strip() for part in
                                           notice.replace(":", ",").replace(";", ",").split(",", 4))  # fmt: skip
    assert more == "as links"
    assert f" files in {root} are there more than once" in start
    return *(int(part.split()[0]) for part in (start, across, mixed)), example.removesuffix(" for example")


def test_training_and_test_folder_are_the_same(tree):
    for path in (tree / "val").glob("*/*"):
        path.unlink()
    for path in (tree / "val").iterdir():
        path.rmdir()
    (tree / "val").rmdir()
    (tree / "val").symlink_to(tree / "train")
    assert twice(tree)[:3] == (6, 6, 0)


def test_equal_numbers_of_different_files_are_no_links(tree, monkeypatch):
    """As on two disks, and on network disks that give all files of a folder the same number."""
    monkeypatch.setattr(folders, "inode_of", lambda entry: 2**32 - 1)
    assert read(tree).notices == ()
    os.link(tree / "train/ape/0.png", tree / "val/bee/0 again.png")
    assert twice(tree) == (1, 1, 1, "train/ape/0.png and val/bee/0 again.png")


def test_the_system_is_not_asked_about_each_file(tree, monkeypatch):
    for i in range(3, 40):
        picture(tree / "train/ape" / f"{i}.png", (20, 20))
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    assert len(read(tree).train[1]) == 43
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
    assert data.train[0].loaded().shape == (8, 3, 32, 32)
    (tree / "train" / odd / f"{odd}.png").write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        data.train[0].loaded()
    assert str(error.value).isprintable()


def test_one_class_is_too_few(tree, monkeypatch, capsys):
    for split in ("train", "val"):
        (tree / split / "bee").rename(tree / f"{split} bee")
    assert run_main(monkeypatch, "--dataset", "folder", "--data_dir", tree) == 2
    assert "at least 2 classes" in capsys.readouterr().err


# worker processes


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, arguments)])
    return main.main()


def killing(name):
    """Stands for the system's end of a process when memory is short, in the worker that decodes this file."""
    decode = Decoder.opened

    def opened(self, row):
        if self.images.names[row].endswith(name) and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, row)

    return opened


def in_another_process(code, *arguments):
    """The death of a worker is told to its whole parent process by a signal: here no part of pytest."""
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import main, test_input; "
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def lose_workers(root):
    """Prints what is told: of a worker that dies at its work, of one that dies while the main process is busy with
    something else, and of those that cannot be started."""
    for case in (lose_at_work, lose_while_busy, lose_at_start):
        try:
            case(root)
        except UsageError as error:
            print(case.__name__, error, flush=True)
    os._exit(0)  # what else PyTorch and the threads of its queues say as they go is not the matter here


def lose_at_work(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "opened", killing(b"bee/1.png"))
        read(root, 16, 2).train[0].loaded()


def lose_while_busy(root):
    images, labels = read(root, 16, 1).train
    batches = StreamedBatches(LabelledImages(images, labels), preprocessing(root))
    next(batches.epoch(2, torch.Generator().manual_seed(0)))
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    for _ in range(1000):
        time.sleep(0.01)


def lose_at_start(root):
    def refuse(self):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.context.ForkProcess, "start", refuse)
        patch.setattr(multiprocessing.context.Process, "start", refuse)
        read(root, 16, 2).train[0].loaded()


def test_a_lost_worker_is_told_of_in_one_line(tree):
    said = in_another_process("test_input.lose_workers(sys.argv[1])", tree).stdout.splitlines()
    start = "--num_workers {}: a process that decodes images was lost ("
    assert [line.split()[0] for line in said] == ["lose_at_work", "lose_while_busy", "lose_at_start"]
    for line, workers in zip(said, (2, 1, 2), strict=True):
        assert start.format(workers) in line
        assert "--num_workers 0" in line
    assert "DataLoader worker (pid" in said[0]
    assert "killed by signal" in said[1]
    assert "Resource temporarily unavailable" in said[2]


def test_other_errors_of_a_loader_stay_what_they_are():
    error = RuntimeError("Caught TypeError in DataLoader worker process 0.")
    assert files.lost_worker(error, 2) is error


def test_a_killed_worker_ends_the_real_command(tree, tmp_path):
    """In its training: the worker that gets the second image of a class dies in the first epoch."""
    code = (
        "sys.argv[0] = 'main.py'; from mnemonics.data.files import Decoder; "
        "Decoder.opened = test_input.killing(b'/1.png'); sys.exit(main.main())"
    )
    for split in ("train", "val"):
        for i in range(2):
            picture(tree / split / "cat" / f"{i}.png", (20, 20))
    flags = [*TINY, "--data_dir", tree, "--out", tmp_path / "run", "--num_workers", "2"]
    done = in_another_process(code, *flags)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("main.py: --num_workers 2: ")]) == 1
    assert "killed" in done.stderr or "exited unexpectedly" in done.stderr
