"""Data sets in memory: what is read, in which order, and that no file that came from outside gets its way."""

import collections
import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data import cifar
from mnemonics.data.sources import ImageSource, load_source
from mnemonics.engine.errors import UsageError

ARCHIVE, FOLDER, URL = CIFAR100.filename, CIFAR100.base_folder, CIFAR100.url
NAMES = [f"class_{i:02}" for i in range(100)]
PER_CLASS = {"train": 2, "test": 1}
DIGITS_SHA256 = "68a64530aec11123c22aea50ac191212d2022c10e61c5923be6a77df5fc31d0f"


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Nothing here may reach the network by accident."""
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *args, **options: pytest.fail("download"))


def split(name: str) -> dict:
    """Content of a synthetic file train or test: random images, the classes in a random order."""
    if name == "meta":
        return {"fine_label_names": NAMES}
    rng = np.random.default_rng(len(name))
    labels = rng.permutation(np.repeat(np.arange(100), PER_CLASS[name])).tolist()
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {"batch_label": name, "data": data, "fine_labels": labels}


def write(path: Path, content: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def write_folder(root: Path, protocol: int = 2) -> Path:
    for name in ("train", "test", "meta"):
        write(root / FOLDER / name, split(name), protocol)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The synthetic data in three forms: folder/cifar-100-python, archive/*.tar.gz, and image files in images/."""
    root = tmp_path_factory.mktemp("whole")
    write_folder(root / "folder")
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / ARCHIVE, "w:gz", compresslevel=1) as tar:
        tar.add(root / "folder" / FOLDER, FOLDER)
    for name in PER_CLASS:  # numbered 0.png, 1.png, 2.png, ... in the order of the data set
        content = split(name)
        for i, (row, k) in enumerate(zip(content["data"], content["fine_labels"], strict=True)):
            folder = root / "images" / name / NAMES[k]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(folder / f"{i}.png", compress_level=1)
    return root


@pytest.fixture
def root(whole, tmp_path) -> Path:
    """A folder that holds a synthetic cifar-100-python."""
    return Path(shutil.copytree(whole / "folder", tmp_path / "data"))


@pytest.fixture
def archive(whole, tmp_path) -> Path:
    """The synthetic archive, alone in its folder."""
    return Path(shutil.copytree(whole / "archive", tmp_path / "archive")) / ARCHIVE


@pytest.fixture
def images(whole, tmp_path) -> Path:
    """The synthetic data as class folders of image files."""
    return Path(shutil.copytree(whole / "images", tmp_path / "images"))


def load(data_dir: Path, **settings) -> ImageSource:
    return load_source(ExperimentConfig(data_dir=str(data_dir), **settings))


def message(data_dir: Path) -> str:
    """What a user is told about this data_dir; checked to be one line with the flag, its value and what would work."""
    with pytest.raises(UsageError) as caught:
        load(data_dir)
    line = str(caught.value)
    assert line.startswith(f"--data_dir {data_dir}: ")
    assert "what works is" in line
    assert line.isprintable()
    return line.removeprefix(f"--data_dir {data_dir}: ")


def assert_synthetic(source: ImageSource) -> None:
    for name, (images, ids) in {"train": source.train(range(100)), "test": source.test(range(100))}.items():
        expected = split(name)
        assert (images.dtype, ids.dtype, images.is_contiguous()) == (torch.uint8, torch.int64, True)
        assert np.array_equal(images.numpy(), expected["data"].reshape(-1, 3, 32, 32))
        assert ids.tolist() == expected["fine_labels"]
    assert list(source.class_names) == NAMES


# ---- digits


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return load_source(ExperimentConfig(dataset="digits"))


def test_digits_split(digits):
    assert (digits.num_classes, digits.image_size, digits.crop_padding, digits.mirror) == (10, 16, 2, False)
    assert digits.class_names == tuple("0123456789")
    assert (len(digits.train_images), len(digits.test_images)) == (1437, 360)
    total = torch.bincount(digits.train_class_ids) + torch.bincount(digits.test_class_ids)
    assert ((torch.bincount(digits.test_class_ids) - 0.2 * total).abs() < 1).all()
    tensors = digits.train_images, digits.train_class_ids, digits.test_images, digits.test_class_ids
    assert hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest() == DIGITS_SHA256


def test_digits_pixels(digits):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    read = torch.cat([digits.train_images, digits.test_images]).numpy()
    ids = torch.cat([digits.train_class_ids, digits.test_class_ids]).tolist()
    assert (read == read[:, :1]).all()  # grey
    assert (read == np.kron(read[:, :, ::2, ::2], np.ones((2, 2)))).all()  # twice the size
    shown = [np.rint(image[0, ::2, ::2] / 255 * 16).tobytes() for image in read]
    expected = [image.tobytes() for image in values.reshape(-1, 8, 8)]
    assert collections.Counter(zip(ids, shown, strict=True)) == collections.Counter(zip(labels, expected, strict=True))
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
        assert torch.equal(found, images[wanted])  # in the order of the data set
        assert torch.equal(found_ids, ids[wanted])
        assert found.data_ptr() != images.data_ptr()  # a copy: whoever gets it holds nothing of other classes


def test_max_images_per_class_keeps_the_first(digits):
    assert min(digits.train_counts()) == digits.train_counts()[8] == 139
    few = load_source(ExperimentConfig(dataset="digits", max_images_per_class=36))
    assert few.train_counts()[0] == 36
    assert torch.bincount(few.test_class_ids).tolist() == [36, 36, 35, 36, 36, 36, 36, 36, 35, 36]
    ids = digits.train_class_ids.tolist()
    wanted = [i for i, k in enumerate(ids) if ids[:i].count(k) < 36]
    assert torch.equal(few.train_images, digits.train_images[wanted])
    assert few.train_images.is_contiguous()


def test_unknown_data_set():
    with pytest.raises(UsageError, match=r"--dataset mnist: .*digits, cifar10, .*folder would work"):
        load_source(ExperimentConfig(dataset="mnist"))


# ---- CIFAR-100, python version


def test_folder_above_and_folder_itself_and_their_notices(root, monkeypatch):
    source = load(root / FOLDER)
    assert_synthetic(source)
    assert (source.name, source.image_size, source.crop_padding, source.mirror) == ("cifar100", 32, 4, True)
    assert (source.mean, source.std) == ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023))
    assert load(root, max_images_per_class=1).train_images.shape == (100, 3, 32, 32)
    md5, counts = load(root).notices
    assert md5.startswith(f"CIFAR-100 in {root / FOLDER}: MD5 sums differ from the official ones (train, test, meta)")
    assert counts == f"CIFAR-100 in {root}: 200 training and 100 test images, not 50000 and 10000"
    sums = {name: hashlib.md5((root / FOLDER / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(cifar.Cifar, "md5", sums)
    monkeypatch.setattr(cifar, "OFFICIAL_COUNTS", (200, 100))
    assert load(root).notices == ()


def test_cifar10(tmp_path):
    """As folder and as archive; of its five training files none has all classes."""
    labels = {"data_batch_1": [9, 0, 8, 7, 6, 5], **{f"data_batch_{i}": [i, i - 1] for i in range(2, 6)}}
    labels["test_batch"] = list(range(10))
    pixels = {
        name: np.random.default_rng(1).integers(0, 256, (len(ids), 3072), np.uint8) for name, ids in labels.items()
    }
    folder, names = tmp_path / "a" / CIFAR10.base_folder, list("abcdefghij")
    write(folder / "batches.meta", {"label_names": names})
    for name, ids in labels.items():
        write(folder / name, {"data": pixels[name], "labels": ids})
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as tar:
        tar.add(folder, folder.name)
    for source in (load(place, dataset="cifar10") for place in (tmp_path / "a", tmp_path)):
        assert (source.name, source.class_names, source.mean[0], source.std[0]) == ("cifar10", (*names,), 0.4914, 0.247)
        assert source.train_class_ids.tolist() == [k for name in [*labels][:5] for k in labels[name]]
        assert np.array_equal(source.train_images.flatten(1), np.concatenate(list(pixels.values())[:5]))
        assert np.array_equal(source.test_images.flatten(1), pixels["test_batch"])
        assert f"({', '.join([*labels, 'batches.meta'])})" in source.notices[0]
    (folder / "data_batch_3").unlink()
    with pytest.raises(UsageError, match=r"no file data_batch_3; what works is a folder that holds cifar-10-python"):
        load(tmp_path / "a", dataset="cifar10")


def test_pickles_of_every_protocol_and_kind(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert_synthetic(load(write_folder(tmp_path, protocol)))
    content = split("train")
    content = {"data": np.asfortranarray(content["data"]), "fine_labels": np.array(content["fine_labels"])}
    write(tmp_path / FOLDER / "train", content)
    assert_synthetic(load(tmp_path))


def python2_pickle(content: dict) -> bytes:
    """Written as Python 2 and numpy 1 wrote the official files: byte strings, numpy.core, dtype('u1', 0, 1)."""

    def string(text: bytes) -> bytes:
        return b"T" + len(text).to_bytes(4, "little") + text

    def numbers(*values: int) -> bytes:
        return b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values)

    data, labels = content["data"], content["fine_labels"]
    parts = (
        *(b"\x80\x02}(", string(b"data"), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n("),
        *(numbers(0), b"t", string(b"b"), b"\x87R(", numbers(1), b"(", numbers(*data.shape), b"t"),
        *(b"cnumpy\ndtype\n(", string(b"u1"), numbers(0, 1), b"tR("),
        *(numbers(3), string(b"|"), b"NNN", numbers(-1, -1, 0), b"tb"),
        *(b"\x89", string(data.tobytes()), b"tb", string(b"fine_labels"), b"](", numbers(*labels), b"eu."),
    )
    return b"".join(parts)


def test_files_as_python_2_wrote_them(root):
    for name in PER_CLASS:
        (root / FOLDER / name).write_bytes(python2_pickle(split(name)))
    assert_synthetic(load(root))


def test_real_subset(cifar100_mini):
    source = load(cifar100_mini)
    assert torch.bincount(source.train_class_ids).tolist() == [10] * 100
    assert torch.bincount(source.test_class_ids).tolist() == [3] * 100
    assert list(source.class_names) == sorted(source.class_names)  # so folders of images get the same class ids
    assert (source.train_images.double() / 255).mean(dim=(0, 2, 3)).tolist() == pytest.approx(source.mean, abs=0.03)


# ---- CIFAR-100, files that are no good


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_malicious_pickle_runs_nothing(root, tmp_path, name):
    path, victim = root / FOLDER / name, tmp_path / "victim"
    path.write_bytes(f"cos\nmkdir\n(V{victim}\ntR.".encode())
    assert str(path) in message(root)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()  # the file was a real threat


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_damaged_and_missing_files(root, name):
    path = root / FOLDER / name
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-1], pickle.dumps([1, 2])):
        path.write_bytes(damaged)
        assert str(path) in message(root)
    path.unlink()
    for place in (root, root / FOLDER):
        assert message(place).startswith(f"{root / FOLDER} has no file {name}; ")


def without_class_5(name: str) -> dict:
    content = split(name)
    keep = [i for i, k in enumerate(content["fine_labels"]) if k != 5]
    return {"data": content["data"][keep], "fine_labels": [content["fine_labels"][i] for i in keep]}


def wrong_label(label: object) -> tuple[str, dict, str]:
    labels = split("test")["fine_labels"]
    return "test", {"fine_labels": [*labels[:3], label, *labels[4:]]}, LABELS


LABELS = "fine_labels is not a list of whole numbers from 0 to 99"
CLASS_NAMES = "fine_label_names is not a list of 100 different names"
WRONG = [  # file, what it holds instead, what is said of it
    ("train", {"data": np.zeros((200, 3071), np.uint8)}, "data is uint8 [200, 3071], needed is uint8 [n, 3072]"),
    ("train", {"data": np.zeros((200, 3, 32, 32), np.uint8)}, "data is uint8 [200, 3, 32, 32]"),
    ("train", {"data": np.zeros(3072, np.uint8)}, "data is uint8 [3072]"),
    ("train", {"data": np.zeros((), np.uint8)}, "data is uint8 []"),
    ("train", {"data": np.zeros((200, 3072), np.float32)}, "data is float32 [200, 3072]"),
    ("train", {"data": np.zeros((200, 3072), np.int8)}, "data is int8 [200, 3072]"),
    ("train", {"data": [[0] * 3072] * 200}, "data is not an array"),
    ("train", {"data": None}, "data is not an array"),
    ("train", {"fine_labels": split("train")["fine_labels"] + [0]}, "201 labels for 200 images"),
    *(("train", {"fine_labels": labels}, LABELS) for labels in (None, 3, np.zeros(200), np.array(3))),
    *map(wrong_label, (-1, 100, 1.0, "1", None, True, [0], 10**30)),
    ("train", without_class_5("train"), "no image of class 5; 1 of 100"),
    ("test", without_class_5("test"), "no image of class 5; 1 of 100"),
    *(("meta", {"fine_label_names": names}, CLASS_NAMES) for names in (None, "abc", NAMES[1:], NAMES + NAMES[:1])),
    *(("meta", {"fine_label_names": [*NAMES[1:], name]}, CLASS_NAMES) for name in (NAMES[1], 3, "x" * 1000)),
]


@pytest.mark.parametrize(("name", "wrong", "words"), WRONG)
def test_wrong_content(root, name, wrong, words):
    write(root / FOLDER / name, {**split(name), **wrong})
    assert message(root).startswith(f"{root / FOLDER / name}: {words}")


# ---- CIFAR-100, archives


def test_archives_are_read_where_they_lie(archive):
    assert_synthetic(load(archive.parent))
    other = archive.rename(archive.with_name("mini.tar.gz"))
    assert_synthetic(load(other))
    assert list(other.parent.iterdir()) == [other]


def test_damaged_archives(archive):
    """Also with one wrong byte in the middle of an image, where only gzip's checksum tells."""
    whole = archive.read_bytes()
    damaged = [whole[: int(part * len(whole))] for part in (0, 0.01, 0.5, 0.99)]
    for position in np.linspace(60, len(whole) - 9, 6, dtype=int):  # after the header, before the sum
        damaged.append(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    for content in [*damaged, b"hello"]:
        archive.write_bytes(content)
        assert f"{archive} cannot be read as a tar archive" in message(archive.parent)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_nothing_in_an_archive_leads_out_of_it(root, archive, tmp_path, kind):
    (root / FOLDER / "train").unlink()
    outside, link = tarfile.TarInfo(f"{FOLDER}/../../escaped"), tarfile.TarInfo(f"{FOLDER}/train")
    link.type, link.linkname = kind, "/etc/passwd"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / FOLDER, FOLDER)
        tar.addfile(outside)
        tar.addfile(link)
    files = sorted(tmp_path.rglob("*"))
    assert message(archive).startswith(f"{archive}: {FOLDER} has no file train")
    assert sorted(tmp_path.rglob("*")) == files


# ---- CIFAR-100, download


def test_download(archive, tmp_path, monkeypatch):
    calls = []

    def serve(url, root, filename, md5):
        calls.append((url, filename, md5))
        Path(root, filename).write_bytes(archive.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    assert_synthetic(load(tmp_path / "new" / "data"))
    assert_synthetic(load(tmp_path / "new" / "data"))
    assert calls == [(URL, ARCHIVE, CIFAR100.tgz_md5)]
    assert [p.name for p in (tmp_path / "new" / "data").iterdir()] == [ARCHIVE]  # nothing temporary is left


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), URLError("lost\nat all"), RuntimeError("corrupted")])
def test_an_interrupted_download_is_not_taken_for_an_archive(archive, tmp_path, monkeypatch, interruption):
    target = tmp_path / "target"

    def interrupted(url, root, filename, md5):
        Path(root, filename).write_bytes(archive.read_bytes()[:-1000])
        assert not (target / ARCHIVE).exists()  # not even while it is under way, so being killed does no harm either
        raise interruption

    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupted)
    with pytest.raises((UsageError, KeyboardInterrupt)) as error:
        load(target)
    said = f"the download failed ({type(interruption).__name__}("
    assert isinstance(interruption, KeyboardInterrupt) or (said in str(error.value) and URL in str(error.value))
    assert list(target.iterdir()) == []


def test_data_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in message(tmp_path / "file" / "data")


# ---- CIFAR-100, folders of image files


def test_image_folders_equal_the_python_version(root, images):
    (images / "train" / ".DS_Store").write_text("not a class")
    (images / "train" / ".hidden").mkdir()
    (images / "train" / NAMES[0] / "._0.png").write_text("not an image")
    source, expected = load(images), load(root)
    assert source.class_names == expected.class_names
    assert source.notices == (f"CIFAR-100 in {images}: 200 training and 100 test images, not 50000 and 10000",)
    assert source.train_images.is_contiguous()
    assert source.train_class_ids.tolist() == sorted(expected.train_class_ids.tolist())
    for k in range(100):
        assert torch.equal(source.train([k])[0], expected.train([k])[0])  # 9.png before 10.png: natural order
        assert torch.equal(source.test([k])[0], expected.test([k])[0])


def test_image_folders_that_are_no_good(images):
    path = images / "train" / NAMES[2] / "0.png"
    Image.new("RGB", (32, 31)).save(path)
    assert f"{path} has 32x31 pixels, needed is 32x32" in message(images)
    path.write_bytes(path.read_bytes()[:40])
    assert f"{path} cannot be read as an image" in message(images)
    shutil.rmtree(images / "train" / NAMES[7])
    assert f"{images / 'train'} lacks 1 of the classes in {images / 'test'}, for example class_07" in message(images)
    shutil.rmtree(images / "test" / NAMES[7])
    assert f"{images} has 99 class folders, not 100" in message(images)
    (images / "train" / NAMES[7]).mkdir()
    assert f"{images / 'train' / NAMES[7]} holds no images" in message(images)
    shutil.rmtree(images / "test")
    assert f"{images} has no train/<class>/* and test/<class>/*" in message(images)
