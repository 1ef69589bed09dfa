"""Data sets: what is read, in which order, and that no file that came from outside gets its way."""

import collections
import hashlib
import io
import os
import pickle
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data import cifar100
from mnemonics.data.cifar100 import ARCHIVE, FOLDER
from mnemonics.data.sources import ImageSource, load_source
from mnemonics.engine.errors import UsageError

NAMES = [f"class_{i:02}" for i in range(100)]
PER_CLASS = {"train": 2, "test": 1}
DIGITS_SHA256 = "68a64530aec11123c22aea50ac191212d2022c10e61c5923be6a77df5fc31d0f"


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Nothing here may reach the network by accident."""

    def unexpected(*args, **kwargs):
        raise AssertionError("download was not expected")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", unexpected)


def split(name: str) -> dict:
    """Content of a synthetic file train or test: random images, the classes in a random order."""
    rng = np.random.default_rng(len(name))
    labels = rng.permutation(np.repeat(np.arange(100), PER_CLASS[name])).tolist()
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {"batch_label": name, "data": data, "fine_labels": labels}


def write(path: Path, content: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def write_folder(root: Path, protocol: int = 2) -> Path:
    for name in PER_CLASS:
        write(root / FOLDER / name, split(name), protocol)
    write(root / FOLDER / "meta", {"fine_label_names": NAMES}, protocol)
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder that holds a synthetic cifar-100-python."""
    return write_folder(tmp_path / "data")


@pytest.fixture
def archive(root, tmp_path) -> Path:
    """The synthetic archive, alone in its folder."""
    path = tmp_path / "archive" / ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / FOLDER, FOLDER)
    return path


def load(data_dir: Path, **settings) -> ImageSource:
    return load_source(ExperimentConfig(data_dir=str(data_dir), **settings))


def message(data_dir: Path) -> str:
    """What a user is told about this data_dir; checked to be one line with the flag, its value and what would work."""
    with pytest.raises(UsageError) as caught:
        load(data_dir)
    line = str(caught.value)
    assert line.startswith(f"--data_dir {data_dir}: ")
    assert "what works is" in line
    assert len(line.splitlines()) == 1
    return line.removeprefix(f"--data_dir {data_dir}: ")


def assert_synthetic(source: ImageSource) -> None:
    for name, images, ids in (
        ("train", source.train_images, source.train_class_ids),
        ("test", source.test_images, source.test_class_ids),
    ):
        expected = split(name)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert ids.dtype == torch.int64
        assert np.array_equal(images.numpy(), expected["data"].reshape(-1, 3, 32, 32))
        assert ids.tolist() == expected["fine_labels"]
    assert list(source.class_names) == NAMES


# ---- digits


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return load_source(ExperimentConfig(dataset="digits"))


def test_digits_split(digits):
    assert digits.train_images.shape == (1437, 3, 16, 16)
    assert digits.test_images.shape == (360, 3, 16, 16)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.uint8
    assert digits.train_images.is_contiguous()
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_classes, digits.image_size, digits.crop_padding, digits.mirror) == (10, 16, 2, False)
    total = torch.bincount(digits.train_class_ids) + torch.bincount(digits.test_class_ids)
    assert ((torch.bincount(digits.test_class_ids) - 0.2 * total).abs() < 1).all()
    tensors = digits.train_images, digits.train_class_ids, digits.test_images, digits.test_class_ids
    assert hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest() == DIGITS_SHA256


def test_digits_pixels(digits):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    expected = np.kron(values.reshape(-1, 8, 8), np.ones((2, 2)))
    read = torch.cat([digits.train_images, digits.test_images]).numpy()
    assert (read == read[:, :1]).all()  # grey
    assert set(np.unique(read)) == {round(v * 255 / 16) for v in range(17)}
    as_read = collections.Counter(
        zip(
            torch.cat([digits.train_class_ids, digits.test_class_ids]).tolist(),
            (np.rint(image[0] / 255 * 16).tobytes() for image in read),
            strict=True,
        )
    )
    assert as_read == collections.Counter(zip(labels.tolist(), (image.tobytes() for image in expected), strict=True))


def test_digits_mean_and_std(digits):
    pixels = digits.train_images.double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),) * 3, abs=1e-4)
    assert digits.std == pytest.approx((pixels.std().item(),) * 3, abs=1e-4)


# ---- what every source does


@pytest.mark.parametrize("class_ids", [[7], (3, 0, 9), range(4), []])
def test_train_and_test_give_only_the_classes_asked_for(digits, class_ids):
    for read, images, ids in (
        (digits.train, digits.train_images, digits.train_class_ids),
        (digits.test, digits.test_images, digits.test_class_ids),
    ):
        found, found_ids = read(class_ids)
        wanted = [i for i, k in enumerate(ids.tolist()) if k in class_ids]
        assert set(found_ids.tolist()) == set(class_ids)
        assert torch.equal(found, images[wanted])  # in the order of the data set
        assert torch.equal(found_ids, ids[wanted])
        assert found.dtype == torch.uint8
        assert found_ids.dtype == torch.int64
        assert found.data_ptr() != images.data_ptr()  # a copy: whoever gets it holds nothing of other classes


def test_smallest_class(digits):
    assert digits.smallest_class() == ("8", 139)


def test_max_images_per_class_keeps_the_first(digits):
    few = load_source(ExperimentConfig(dataset="digits", max_images_per_class=36))
    assert few.smallest_class() == ("0", 36)
    assert torch.bincount(few.test_class_ids).tolist() == [36, 36, 35, 36, 36, 36, 36, 36, 35, 36]
    assert torch.equal(few.train([4])[0], digits.train([4])[0][:36])
    assert torch.equal(few.test([3])[0], digits.test([3])[0][:36])
    seen, wanted = collections.Counter(), []
    for i, k in enumerate(digits.train_class_ids.tolist()):
        seen[k] += 1
        if seen[k] <= 36:
            wanted.append(i)
    assert torch.equal(few.train_images, digits.train_images[wanted])
    assert few.train_images.is_contiguous()


def test_unknown_data_set():
    with pytest.raises(UsageError, match=r"--dataset mnist: .*digits, cifar100, .*folder would work"):
        load_source(ExperimentConfig(dataset="mnist"))


# ---- CIFAR-100, python version


def test_folder_above_and_folder_itself(root):
    source = load(root)
    assert_synthetic(source)
    assert_synthetic(load(root / FOLDER))
    assert source.name == "cifar100"
    assert (source.mean, source.std) == ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023))
    assert (source.num_classes, source.image_size, source.crop_padding, source.mirror) == (100, 32, 4, True)
    assert source.smallest_class() == ("class_00", 2)
    assert load(root, max_images_per_class=1).train_images.shape == (100, 3, 32, 32)


def test_notices_of_md5_and_counts(root, monkeypatch):
    md5, counts = load(root).notices
    assert md5.startswith(f"CIFAR-100 in {root / FOLDER}: MD5 sums differ from the official ones (train, test, meta)")
    assert counts == f"CIFAR-100 in {root}: 200 training and 100 test images, not 50000 and 10000"
    sums = {name: hashlib.md5((root / FOLDER / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(cifar100, "OFFICIAL_MD5", {**sums, "test": "0"})
    assert "(test)" in load(root).notices[0]
    monkeypatch.setattr(cifar100, "OFFICIAL_MD5", sums)
    monkeypatch.setattr(cifar100, "OFFICIAL_COUNTS", (200, 100))
    assert load(root).notices == ()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    assert_synthetic(load(write_folder(tmp_path, protocol)))


def test_labels_as_an_array_and_data_in_columns(root):
    content = split("train")
    content = {"data": np.asfortranarray(content["data"]), "fine_labels": np.array(content["fine_labels"])}
    write(root / FOLDER / "train", content)
    assert_synthetic(load(root))


def python2_pickle(content: dict) -> bytes:
    """Written as Python 2 and numpy 1 wrote the official files: byte strings, numpy.core, dtype('u1', 0, 1)."""

    def string(text: bytes) -> bytes:
        return b"T" + len(text).to_bytes(4, "little") + text

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    data = content["data"]
    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + number(0)
        + number(1)
        + b"tR"
        + b"("
        + number(3)
        + string(b"|")
        + b"NNN"
        + number(-1)
        + number(-1)
        + number(0)
        + b"tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n("
        + number(0)
        + b"t"
        + string(b"b")
        + b"\x87R"
        + b"("
        + number(1)
        + b"("
        + number(data.shape[0])
        + number(data.shape[1])
        + b"t"
        + dtype
        + b"\x89"
        + string(data.tobytes())
        + b"tb"
    )
    labels = b"](" + b"".join(map(number, content["fine_labels"])) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"fine_labels") + labels + b"u."


def test_files_as_python_2_wrote_them(root):
    for name in PER_CLASS:
        (root / FOLDER / name).write_bytes(python2_pickle(split(name)))
    assert_synthetic(load(root))


def test_real_subset(cifar100_mini):
    source = load(cifar100_mini)
    assert source.train_images.shape == (1000, 3, 32, 32)
    assert source.test_images.shape == (300, 3, 32, 32)
    assert torch.bincount(source.train_class_ids).tolist() == [10] * 100
    assert torch.bincount(source.test_class_ids).tolist() == [3] * 100
    assert source.class_names[0] == "apple"
    assert list(source.class_names) == sorted(source.class_names)  # so PNG folders get the same class ids
    assert any("1000 training and 300 test images" in notice for notice in source.notices)
    assert (source.train_images.double() / 255).mean(dim=(0, 2, 3)).tolist() == pytest.approx(source.mean, abs=0.03)


# ---- CIFAR-100, files that are no good


class Evil:
    """Calls a function when it is unpickled by the ordinary unpickler."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_malicious_pickle_runs_nothing(root, tmp_path, name, protocol):
    victim = tmp_path / "victim"
    write(root / FOLDER / name, Evil(os.mkdir, str(victim)), protocol)
    line = message(root)
    assert str(root / FOLDER / name) in line
    assert f"refused: it asks for '{os.mkdir.__module__}.mkdir'" in line
    assert not victim.exists()
    pickle.loads((root / FOLDER / name).read_bytes())
    assert victim.exists()  # the file was a real threat


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.fromfile, time.sleep, np.ndarray.tofile])
def test_other_names_are_refused(root, function):
    write(root / FOLDER / "meta", {"fine_label_names": Evil(function, "1")}, protocol=4)
    assert "refused: it" in message(root)


def test_forged_object_arrays_are_refused(root):
    """With numpy's own dtype and ndarray, an array of objects at addresses of the file's choice could be built."""
    for forged in (Evil(np.dtype, "O", False, True), Evil(np.dtype, [("a", "O")]), np.array([NAMES], dtype=object)):
        write(root / FOLDER / "train", {**split("train"), "data": forged})
        assert "refused: an array of type" in message(root)
    write(root / FOLDER / "train", {**split("train"), "data": Evil(np.ndarray, (1,))})
    assert "damaged" in message(root)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.999])
def test_truncated_files(root, name, part):
    path = root / FOLDER / name
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert f"{path} is damaged" in message(root)


def test_damaged_bytes_never_end_in_a_traceback(root):
    path = root / FOLDER / "meta"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(UsageError):  # damage within a class name goes unnoticed
            load(root)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_missing_files(root, name):
    (root / FOLDER / name).unlink()
    assert message(root).startswith(f"{root / FOLDER} has no file {name}; ")
    assert message(root / FOLDER).startswith(f"{root / FOLDER} has no file {name}; ")


def without_class_5(name: str) -> dict:
    content = split(name)
    keep = [i for i, k in enumerate(content["fine_labels"]) if k != 5]
    return {"data": content["data"][keep], "fine_labels": [content["fine_labels"][i] for i in keep]}


@pytest.mark.parametrize("name", ["train", "test"])
def test_missing_class(root, name):
    write(root / FOLDER / name, without_class_5(name))
    assert f"{root / FOLDER / name}: no image of class 5; 1 of 100" in message(root)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (np.zeros((200, 3071), np.uint8), "uint8 [200, 3071]"),
        (np.zeros((200, 3, 32, 32), np.uint8), "uint8 [200, 3, 32, 32]"),
        (np.zeros(3072, np.uint8), "uint8 [3072]"),
        (np.zeros((), np.uint8), "uint8 []"),
        (np.zeros((200, 3072), np.float32), "float32 [200, 3072]"),
        (np.zeros((200, 3072), np.int8), "int8 [200, 3072]"),
        ([[0] * 3072] * 200, "not an array"),
        (None, "not an array"),
    ],
)
def test_wrong_data(root, data, found):
    write(root / FOLDER / "train", {**split("train"), "data": data})
    assert message(root).startswith(f"{root / FOLDER / 'train'}: data is {found}, needed is uint8 [n, 3072]; ")


@pytest.mark.parametrize("wrong", [-1, 100, 1.0, "1", None, True, [0], 10**30])
def test_wrong_label(root, wrong):
    content = split("test")
    content["fine_labels"][3] = wrong
    write(root / FOLDER / "test", content)
    assert f"{root / FOLDER / 'test'}: fine_labels is not a list of whole numbers from 0 to 99" in message(root)


def test_wrong_number_of_labels_and_no_labels(root):
    content = split("train")
    write(root / FOLDER / "train", {**content, "fine_labels": content["fine_labels"] + [0]})
    assert f"{root / FOLDER / 'train'}: 201 labels for 200 images" in message(root)
    for labels in (None, 3, np.zeros(200), np.array(3)):
        write(root / FOLDER / "train", {**content, "fine_labels": labels})
        assert f"{root / FOLDER / 'train'}: fine_labels is not a list" in message(root)


@pytest.mark.parametrize("names", [None, "abc", NAMES[1:], NAMES + NAMES[:1], NAMES[1:] + NAMES[-1:], [*NAMES[1:], 3]])
def test_wrong_class_names(root, names):
    write(root / FOLDER / "meta", {"fine_label_names": names})
    assert f"{root / FOLDER / 'meta'}: fine_label_names is not a list of 100 different names" in message(root)


def test_not_a_dictionary(root):
    write(root / FOLDER / "test", [1, 2])
    assert f"{root / FOLDER / 'test'} holds no dictionary" in message(root)


# ---- CIFAR-100, archives


def test_archive_in_folder_is_unpacked_once(archive):
    assert_synthetic(load(archive.parent))
    assert sorted(p.name for p in archive.parent.iterdir()) == [FOLDER, ARCHIVE]  # nothing temporary is left
    archive.unlink()
    assert_synthetic(load(archive.parent))


def test_archive_itself(archive):
    assert_synthetic(load(archive))
    assert (archive.parent / FOLDER).is_dir()
    assert_synthetic(load(archive))  # although its unpacked folder is there by now


def test_archive_of_another_name_leaves_nothing_under_the_official_name(archive):
    other = archive.rename(archive.with_name("mini.tar.gz"))
    assert_synthetic(load(other))
    assert list(other.parent.iterdir()) == [other]


def test_archive_in_a_folder_that_cannot_be_written(archive, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_synthetic(load(archive.parent))
    assert list(archive.parent.iterdir()) == [archive]


def test_archive_unpacked_by_another_run_meanwhile(archive, monkeypatch):
    def slower(*args):
        write_folder(archive.parent)
        return read(*args)

    read = cifar100.read_python_folder
    monkeypatch.setattr(cifar100, "read_python_folder", slower)
    assert_synthetic(load(archive.parent))
    assert sorted(p.name for p in archive.parent.iterdir()) == [FOLDER, ARCHIVE]


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_truncated_archive_leaves_nothing(archive, part):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(part * len(whole))])
    assert f"{archive} cannot be unpacked" in message(archive.parent)
    assert list(archive.parent.iterdir()) == [archive]
    archive.write_bytes(whole)
    assert_synthetic(load(archive.parent))


def test_one_damaged_byte_in_the_archive_is_noticed(archive):
    """Also in the middle of an image, where only gzip's checksum tells."""
    whole = archive.read_bytes()
    for position in np.linspace(60, len(whole) - 9, 12, dtype=int):  # after the header, before the sum
        damaged = bytearray(whole)
        damaged[position] ^= 1
        archive.write_bytes(damaged)
        assert f"{archive} cannot be unpacked" in message(archive)


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert f"{path} cannot be unpacked as a tar archive" in message(path)


def member(name: str, content: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped", b"x"),
        member(f"{FOLDER}/../../escaped", b"x"),
        member(f"{FOLDER}/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(f"{FOLDER}/link", type=tarfile.LNKTYPE, linkname="../../archive/cifar-100-python.tar.gz"),
        member(f"{FOLDER}/train", type=tarfile.FIFOTYPE),
    ],
)
def test_archive_members_that_point_outside_are_refused(root, archive, bad, tmp_path):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / FOLDER, FOLDER)
        tar.addfile(*bad)
    assert f"{archive} cannot be unpacked" in message(archive.parent)
    assert list(archive.parent.iterdir()) == [archive]
    assert not list(tmp_path.rglob("escaped"))


def test_archive_of_something_else(archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(*member("readme.txt", b"x"))
    assert f"{archive} holds no folder {FOLDER}" in message(archive)


def test_archive_with_a_bad_file_is_not_kept(root, archive):
    write(root / FOLDER / "train", without_class_5("train"))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / FOLDER, FOLDER)
    assert f"{archive}: {FOLDER}/train: no image of class 5" in message(archive)
    assert list(archive.parent.iterdir()) == [archive]


# ---- CIFAR-100, download


def test_offline(tmp_path, monkeypatch):
    calls = []

    def offline(*args, **kwargs):
        calls.append(args)
        raise URLError("Name or service not known\nat all")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    line = message(tmp_path / "new" / "data")
    assert line.startswith("there is no CIFAR-100, and the download failed (URLError: ")
    assert ARCHIVE in line
    assert CIFAR100.url in line
    assert len(calls) == 1


def test_download(archive, tmp_path, monkeypatch):
    calls = []

    def serve(url, root, filename, md5):
        calls.append((url, filename, md5))
        Path(root, filename).write_bytes(archive.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    assert_synthetic(load(tmp_path / "new" / "data"))
    assert_synthetic(load(tmp_path / "new" / "data"))
    assert calls == [(CIFAR100.url, ARCHIVE, CIFAR100.tgz_md5)]
    assert sorted(p.name for p in (tmp_path / "new" / "data").iterdir()) == [FOLDER, ARCHIVE]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), URLError("lost"), RuntimeError("corrupted")])
def test_an_interrupted_download_is_not_taken_for_an_archive(archive, tmp_path, monkeypatch, interruption):
    target = tmp_path / "target"

    def interrupted(url, root, filename, md5):
        Path(root, filename).write_bytes(archive.read_bytes()[:-1000])
        assert not (target / ARCHIVE).exists()  # not even while it is under way, so being killed does no harm either
        raise interruption

    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupted)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        load(target)
    assert list(target.iterdir()) == []


def test_data_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in message(tmp_path / "file" / "data")


# ---- CIFAR-100, PNG folders


@pytest.fixture
def png(tmp_path) -> Path:
    """The synthetic data as PNG class folders, the files numbered 0, 1, 2, ... in the order of the data set."""
    for name in PER_CLASS:
        content = split(name)
        for i, (row, k) in enumerate(zip(content["data"], content["fine_labels"], strict=True)):
            folder = tmp_path / "png" / name / NAMES[k]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(folder / f"{i}.png", compress_level=1)
    return tmp_path / "png"


def test_png_folders_equal_the_python_version(root, png):
    (png / "train" / ".DS_Store").write_text("not a class")
    (png / "train" / ".hidden").mkdir()
    (png / "train" / NAMES[0] / "readme.txt").write_text("not an image")
    (png / "train" / NAMES[0] / "._0.png").write_text("not an image either")
    source, expected = load(png), load(root)
    assert source.class_names == expected.class_names
    assert source.notices == (f"CIFAR-100 in {png}: 200 training and 100 test images, not 50000 and 10000",)
    assert source.train_images.is_contiguous()
    assert source.train_class_ids.tolist() == sorted(expected.train_class_ids.tolist())
    for k in range(100):
        assert torch.equal(source.train([k])[0], expected.train([k])[0])  # 9.png before 10.png: natural order
        assert torch.equal(source.test([k])[0], expected.test([k])[0])


def test_png_grey_and_palette_and_16_bits(png):
    folder = png / "test" / NAMES[3]
    grey = np.arange(1024, dtype=np.uint8).reshape(32, 32) // 2 * 2
    Image.fromarray(grey).save(folder / "a_grey.PNG", format="PNG")
    Image.fromarray(grey).convert("RGB").quantize(256).save(folder / "b_palette.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "c_alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 200).save(folder / "d_sixteen_bits.png")
    images = load(png).test([3])[0]
    assert (images[-4:] == torch.from_numpy(grey)).all()


def test_png_of_another_size_or_kind(png):
    path = png / "train" / NAMES[2] / "0.png"
    Image.new("RGB", (32, 31)).save(path)
    assert f"{path} has 32x31 pixels, needed is 32x32" in message(png)
    Image.new("RGB", (32, 32)).save(path, format="JPEG")
    assert f"{path} cannot be read as an image" in message(png)


@pytest.mark.parametrize("part", [0, 0.1, 0.5])
def test_png_truncated(png, part):
    path = next((png / "test" / NAMES[99]).iterdir())
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert f"{path} cannot be read as an image" in message(png)


def test_png_classes_that_do_not_fit(png):
    (png / "test" / NAMES[99]).rename(png / "test" / "zebra")
    assert f"{png}: class folder class_99 is in only one of train and test" in message(png)
    (png / "test" / "more").mkdir()
    assert f"{png / 'test'} has 101 class folders, not 100" in message(png)
    (png / "test").rename(png / "val")
    assert f"{png / 'test'} is not there" in message(png)


def test_png_class_without_images(png):
    for path in (png / "train" / NAMES[7]).iterdir():
        path.unlink()
    assert f"{png / 'train' / NAMES[7]} has no PNG file" in message(png)


def test_the_facts_about_the_official_files_are_torchvisions():
    sums = {**dict(CIFAR100.train_list), **dict(CIFAR100.test_list), "meta": CIFAR100.meta["md5"]}
    assert sums == cifar100.OFFICIAL_MD5
    names = CIFAR100.url, CIFAR100.base_folder, CIFAR100.filename, CIFAR100.tgz_md5
    assert names == (cifar100.URL, FOLDER, ARCHIVE, cifar100.ARCHIVE_MD5)
