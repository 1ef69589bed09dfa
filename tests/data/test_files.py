"""Images in files: listing folders, decoding, cutting, streaming; and runs on them."""

import collections
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import TINY, picture, preprocessing, read, training_images
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import main
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, StreamedBatches
from mnemonics.data.digits import as_digit
from mnemonics.data.files import Decoder, read_images
from mnemonics.data.sources import load_source
from mnemonics.engine.errors import UsageError
from mnemonics.evaluation import features_of
from mnemonics.models import make_network

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """Two classes, 5 training and 2 validation images each, of several sizes and modes."""
    for split, count in (("train", 5), ("val", 2)):
        for c, name in enumerate(("ape", "bee")):
            for i in range(count):
                mode, ending = (("L", "png"), ("RGB", "png"), ("RGB", "jpg"), ("CMYK", "JPEG"), ("RGBA", "png"))[i]
                picture(tmp_path / split / name / f"{i}.{ending}", (40 + 3 * i, 36 + 5 * c), 10 * c + i, mode)
    return tmp_path


# listing


def test_files_classes_and_order_are_those_of_torchvision(tree):
    data, reference = read(tree), ImageFolder(tree / "train")
    samples = zip(data.train_images.names, data.train_class_ids.tolist(), strict=True)
    assert data.class_names == tuple(reference.classes) == ("ape", "bee")
    assert [(str(tree / os.fsdecode(name)), label) for name, label in samples] == reference.samples
    assert data.test_class_ids.tolist() == [0, 0, 1, 1]
    assert data.notices == ()


def test_nested_and_hidden_and_other_files_and_names_that_are_not_ascii(tree):
    picture(tree / "train/ape/x.jpg/deep.png", (40, 40))  # a folder called like an image is a folder
    picture(tree / "train/ape/.hidden.png", (40, 40))
    picture(tree / "train/stray.png", (40, 40))
    (tree / "train/bee/notes.txt").write_text("no image")
    deep = tree / ("d" * 200) / ("ü" * 100)
    (tree / "val").rename(tree / "test")  # serves as well
    for split in ("train", "test"):
        shutil.copytree(tree / split, deep / split)
        (deep / split / "bee").rename(deep / split / "Ωmega")
    data = read(deep)
    assert data.class_names == ("ape", "Ωmega")
    assert data.train_images.names[5:7].tolist() == [b"train/ape/x.jpg/deep.png", "train/Ωmega/0.png".encode()]
    assert torch.bincount(data.train_class_ids).tolist() == [6, 5]
    assert data.train_images.loaded().shape == (11, 3, 32, 32)
    assert len(data.test_images) == 4
    told = f"2 files in {deep} are no images by their names, or in no class: ignored (1 .png, 1 .txt)"
    assert data.notices == (told,)


def test_size_and_place_of_images(tree):
    picture(tree / "test/ape/0.png", (40, 40))
    unused, size = read(tree, None).notices
    assert unused == f"{tree / 'val'} is the test set; {tree / 'test'} is not used"
    sides = "the short sides of 10 training images are 36 to 41, their median 36"
    assert size == f"images are shown at 36x36 pixels (--image_size): {sides}"
    for shown, words, *sides in ((224, "they differ widely", 9, 300, 400), (1, "which is tiny", 1, 1)):
        for i, side in enumerate(sides):
            picture(tree / words / "train/ape" / f"{i}.png", (side + i, side))
        shutil.copytree(tree / words / "train", tree / words / "val")
        data = read(tree / words, None)
        assert (data.image_size, words in data.notices[0]) == (shown, True)
    shutil.copytree(tree, tree / "seed_1993_subset_100_imagenet" / "data")
    shutil.rmtree(tree / "train")
    with pytest.raises(UsageError, match=r"seed_1993.* holds 2 classes, not 100; --dataset folder takes"):
        load_source(ExperimentConfig(dataset="imagenet_sub", data_dir=str(tree)))


# decoding


@pytest.mark.parametrize(("size", "resized"), [(32, 32), (112, 128)])
def test_plain_images_are_torchvisions(tree, size, resized):
    images = training_images(tree, size)
    transform = v2.Compose([v2.Resize(resized), v2.CenterCrop(size), v2.PILToTensor()])
    expected = torch.stack([transform(image) for image, _ in ImageFolder(tree / "train")])
    assert images.shape == expected.shape
    assert torch.equal(images.loaded(), expected)
    assert torch.equal(torch.cat(list(images.plain_batches(3))), expected)


def test_images_from_elsewhere_are_shown_as_those_of_the_data_set(tree):
    test = read(tree).test_images
    assert torch.equal(read_images([tree / os.fsdecode(name) for name in test.names], 32, None), test.loaded())
    digit = load_source(ExperimentConfig(dataset="digits")).test_images[0]
    for size in (8, 16, 64):
        Image.fromarray(digit[0].numpy()).resize((size, size), Image.Resampling.NEAREST).save(tree / f"{size}.png")
        assert torch.equal(read_images([tree / f"{size}.png"], 16, as_digit)[0], digit)


@pytest.mark.parametrize("size", [32, 112])
def test_random_cuts_are_torchvisions_and_follow_the_seed(tree, size):
    exemplar = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
    images, rows, seeds = training_images(tree, size).followed_by(exemplar), (7, 2, 10), (11, 12, 13)
    if size == 32:
        crops = [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *crops])
    else:
        transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    originals = [*(image for image, _ in ImageFolder(tree / "train")), exemplar[0]]
    state = torch.get_rng_state()
    cut = Decoder(images)[torch.tensor(rows), torch.tensor(seeds)]
    assert torch.equal(torch.get_rng_state(), state)
    for row, seed, image in zip(rows, seeds, cut, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(image, transform(originals[row]))
    assert not torch.equal(cut, Decoder(images)[torch.tensor(rows), torch.tensor(seeds[::-1])])


def test_choosing_and_joining(tree):
    data = read(tree, 112)  # exemplars stay as they are at all sizes
    images, everything = data.train_images, data.train_images.loaded()
    assert torch.equal(images[torch.tensor([3, 1])].loaded(), everything[[3, 1]])
    assert torch.equal(images[data.train_class_ids == 1][:2].loaded(), everything[5:7])
    exemplars = torch.randint(256, (2, 3, 112, 112), dtype=torch.uint8)
    joined = images[:2].followed_by(exemplars).followed_by(exemplars[:1])[torch.tensor([4, 2, 0])]
    assert torch.equal(joined.loaded(), torch.stack([exemplars[0], exemplars[0], everything[0]]))
    assert torch.equal(images[:1].followed_by(images[4:5]).loaded(), everything[[0, 4]])
    assert images[:0].loaded().shape == (0, 3, 112, 112)
    with pytest.raises(ValueError, match="two folders"):
        images.followed_by(data.test_images)


# a folder without a split


def test_a_share_of_each_class_is_for_test(tmp_path, told):
    """Always the same one, told, listed and hardly changed by a new image; a run does not go on with other images."""
    root, folder = tmp_path / "a", tmp_path / "run"
    for name, count in (("ape", 8), ("bee", 3)):
        for i in range(count):
            picture(root / name / f"{i}.png", (20, 20), i)
    refused = partial(told, main.main, *TINY, "--data_dir", root, "--out", folder, "--nb_cl_fg", 1)
    assert "--val_share 0.2 takes a fifth" in refused()
    assert "--val_share 1.0: must be at most 0.9" in refused("--val_share", "1")
    assert "--val_share 0.3: digits has a test set" in refused("--val_share", "0.3", "--dataset", "digits")
    run(root, folder, "--nb_cl_fg", 1, "--val_share", 0.25)
    listed = (folder / "test_files.txt").read_text().splitlines()
    assert "--val_share 0.25: 3 images are for test" in (folder / "log.txt").read_text()
    hashes = {hashlib.sha256(f"ape/{i}.png".encode()).hexdigest(): f"ape/{i}.png" for i in range(8)}
    assert listed[:2] == sorted(hashes[digest] for digest in sorted(hashes)[:2])
    assert listed[2].startswith("bee/")
    picture(root / "ape/00.png", (20, 20))
    assert "has other data (images with other contents)" in refused("--val_share", "0.25")
    now = load_source(ExperimentConfig(dataset="folder", data_dir=str(root), val_share=0.25))
    assert len({*map(os.fsdecode, now.test_images.names)} - {*listed}) <= 1
    for split in ("train", "val"):
        picture(root / split / "0.png", (20, 20))
    assert "has train/ and val/ or test/; leave --val_share 0.25 out" in refused("--val_share", "0.25")
    shutil.rmtree(root / "val")
    assert "train holds one image; --val_share 0.25 needs two" in refused("--val_share", "0.25")


# streaming


def epochs(tree, workers):
    """Two epochs of batches of 4, over 10 files and an exemplar: images and labels of each epoch."""
    data = read(tree, 32, workers)
    images = data.train_images.followed_by(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    labels = torch.cat([data.train_class_ids, data.train_class_ids[:1]])
    batches = StreamedBatches(LabelledImages(images, labels), preprocessing(tree))
    generator = torch.Generator().manual_seed(3)
    sizes = [4, 4, 3]
    return [[torch.cat(parts) for parts in zip(*batches.epoch(sizes, generator), strict=True)] for _ in range(2)]


def test_workers_change_nothing_and_epochs_differ(tree):
    alone, helped = epochs(tree, 0), epochs(tree, 2)
    for (images, labels), (same_images, same_labels) in zip(alone, helped, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert torch.bincount(labels).tolist() == [6, 5]
    assert not torch.equal(alone[0][0], alone[1][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_chosen_again_and_again_by_the_same_workers(tree, workers):
    data = LabelledImages((images := training_images(tree, 32, workers)), torch.arange(10))
    choose, everything, processes = data.chooser(), images.loaded(), set()
    for index in (torch.arange(10).repeat(2), torch.tensor([7, 1]), torch.tensor([], dtype=torch.int64)):
        chosen = choose(index)
        assert (torch.equal(chosen.images, everything[index]), torch.equal(chosen.labels, index)) == (True, True)
        processes.add(tuple(sorted(child.pid for child in multiprocessing.active_children())))
    assert [len(pids) for pids in processes] == [workers]


def test_features_of_files_are_those_of_their_pixels(tree):
    images = training_images(tree)
    model, prep = make_network("resnet8", 2, torch.device("cpu")), preprocessing(tree)
    for mirrored in (False, True):
        ours, reference = (features_of(model, x, prep, 4, mirrored) for x in (images, images.loaded()))
        assert torch.equal(ours, reference)


# whole runs


def run(root, folder, *arguments):
    """main.py in this process. Returns results.json."""
    assert main.main([*TINY, "--data_dir", str(root), "--out", str(folder), *map(str, arguments)]) == 0
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def mini(imagenet_mini, tmp_path_factory):
    """Four real ImageNet classes, chosen by the rule of the paper's subset and resized: by the real command."""
    made = tmp_path_factory.mktemp("mini") / "made"
    script = [sys.executable, ROOT / "process_imagenet/generate_imagenet_subset.py", "--src", imagenet_mini]
    subprocess.run([*script, "--dst", made, "--num_classes", "4", "--resize", "32"], check=True)
    return made


@pytest.fixture(scope="module")
def finished(mini, tmp_path_factory):
    """A whole run of LUCIR with mnemonics: its folder, and phase -> classes of which it opened training files."""
    folder, decode, opened = tmp_path_factory.mktemp("finished") / "run", Decoder.image, collections.defaultdict(set)

    def image(self, row):
        if row < len(self.images.names):
            split, name, _ = os.fsdecode(self.images.names[row]).split("/")
            if split == "train":
                opened[len(list(folder.glob("phase_*.pt")))].add(name)
        return decode(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "image", image)
        run(mini, folder)
    return folder, opened


def test_a_run_on_files(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert [p["classes_seen"] for p in results["phases"]] == [2, 3, 4]
    assert results["config"]["image_size"] == 32
    assert [p["train_images"] for p in results["phases"]][1] == {"new": 6, "old": 4}
    assert [p["exemplar_bytes"] for p in results["phases"]] == [n * 2 * 3 * 32 * 32 for n in (2, 3, 4)]


def test_images_of_old_classes_are_never_opened(imagenet_mini, finished):
    """Beyond exemplars, which are in memory: training files of a class are opened in its own phase only."""
    folder, opened = finished
    wnids = sorted(path.name for path in (imagenet_mini / "train").iterdir())
    classes = sorted(np.random.RandomState(1993).choice(wnids, 4, replace=False))
    order = [classes[c] for c in json.loads((folder / "results.json").read_text())["class_order"]]
    assert dict(opened) == {0: set(order[:2]), 1: {order[2]}, 2: {order[3]}}


CODED = "--method baseline --image_size {} --exemplar_format jpeg:90 --recode 1 --num_workers 2"


@pytest.mark.parametrize(
    "flags", ["--baseline bic", "--baseline joint --finetune_epochs 0", CODED.format(32), CODED.format(72)]
)
def test_baselines_on_files(mini, tmp_path, flags):
    assert len(run(mini, tmp_path / "run", *flags.split())["phases"]) == 3


def test_large_images(mini, tmp_path):
    """Above 64 pixels they get the network, the cuts and the schedule of ImageNet."""
    flags = "--image_size 72 --network auto --nb_cl_fg 3 --exemplars herding --max_images_per_class 2 --nb_protos 1"
    results = run(mini, tmp_path / "run", *flags.split())
    assert (results["config"]["network"], results["config"]["lr_drops"]) == ("resnet18", "1/3,2/3")
    assert results["phases"][0]["exemplar_bytes"] == 3 * 3 * 72 * 72
