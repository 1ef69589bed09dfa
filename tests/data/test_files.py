"""Images in files: listing folders, decoding, cutting, streaming; and runs on them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import main
from mnemonics import algorithm as experiment
from mnemonics.config.fields import ExperimentConfig, parse_args
from mnemonics.config.presets import resolved, run_name
from mnemonics.data.batches import LabelledImages, Preprocessing, StreamedBatches
from mnemonics.data.files import Decoder
from mnemonics.data.folders import read_folders
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.evaluation import features_of
from mnemonics.models import make_network

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
TINY = ("--dataset folder --nb_cl_fg 2 --nb_cl 1 --network resnet8 --epochs 1 --max_images_per_class 6 --nb_protos 2 "
        "--mnemonics_val_batch_size 64 "
        "--mnemonics_epochs 1 --mnemonics_steps 2 --finetune_epochs 1 --num_workers 0").split()  # fmt: skip


def picture(path, size, seed=0, mode="RGB"):
    """A file with noise of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes, 5 training and 2 validation images each, of several sizes and modes."""
    for split, count in (("train", 5), ("val", 2)):
        for c, name in enumerate(("ape", "bee")):
            for i in range(count):
                mode, ending = (("L", "png"), ("RGB", "png"), ("RGB", "jpg"), ("CMYK", "JPEG"), ("RGBA", "png"))[i]
                picture(tmp_path / split / name / f"{i}.{ending}", (40 + 3 * i, 36 + 5 * c), 10 * c + i, mode)
    return tmp_path


@pytest.fixture(scope="module")
def mini(imagenet_mini, tmp_path_factory):
    """Four real ImageNet classes."""
    folder = tmp_path_factory.mktemp("mini")
    for split in ("train", "val"):
        for name in sorted(path.name for path in (imagenet_mini / split).iterdir())[:4]:
            shutil.copytree(imagenet_mini / split / name, folder / split / name)
    return folder


def read(root, size=32, workers=0):
    return read_folders(Path(root), f"--data_dir {root}", size, workers)


def run(root, folder, *arguments):
    """Run in this process. Returns results.json."""
    experiment.run(parse_args([*TINY, "--data_dir", str(root), "--out", str(folder), *map(str, arguments)]))
    return json.loads((folder / "results.json").read_text())


# listing


def test_files_classes_and_order_are_those_of_torchvision(tree):
    data, reference = read(tree), ImageFolder(tree / "train")
    assert data.class_names == tuple(reference.classes) == ("ape", "bee")
    assert [str(tree / os.fsdecode(name)) for name in data.train[0].names] == [path for path, _ in reference.samples]
    assert data.train[1].tolist() == reference.targets
    assert data.test[1].tolist() == [0, 0, 1, 1]


def test_nested_and_hidden_and_other_files(tree):
    picture(tree / "train/ape/images/deep.png", (40, 40))
    picture(tree / "train/ape/.hidden.png", (40, 40))
    (tree / "train/bee/notes.txt").write_text("no image")
    data = read(tree)
    assert torch.bincount(data.train[1]).tolist() == [6, 5]
    assert data.notices == (f"1 files in {tree} are no images by their names, or in no class: ignored",)


def test_a_test_folder_serves_as_val(tree):
    (tree / "val").rename(tree / "test")
    assert len(read(tree).test[1]) == 4


def test_the_size_is_that_of_the_first_image_up_to_224(tree):
    assert read(tree, None).train[0].size == 36
    picture(tree / "train/ape/0.png", (500, 300))
    assert read(tree, None).train[0].size == 224


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / "val"), ["no train/<class>/*"]),
        (lambda root: shutil.rmtree(root / "val/bee"), ["2 classes", "1 in", "bee"]),
        (lambda root: [path.unlink() for path in (root / "train/bee").iterdir()], ["train/bee", "no images"]),
        (lambda root: (root / "train/ape/0.png").write_bytes(b"junk"), ["train/ape/0.png", "cannot be read"]),
    ],
)
def test_mistakes_are_told_in_one_line(tree, damage, words):
    damage(tree)
    with pytest.raises(UsageError) as error:
        read(tree, None)
    assert all(word in str(error.value) for word in ["--data_dir", *words])
    assert "\n" not in str(error.value)


def test_names_that_are_not_ascii_and_long_paths(tmp_path):
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    for split in ("train", "val"):
        picture(deep / split / "Käfer" / f"{'ü' * 100}.png", (32, 32))
        picture(deep / split / "Ωmega" / "1.png", (32, 32))
    data = read(deep)
    assert data.class_names == ("Käfer", "Ωmega")
    assert data.train[0].loaded().shape == (2, 3, 32, 32)


# decoding


@pytest.mark.parametrize(("size", "resized"), [(32, 32), (112, 128)])
def test_plain_images_are_torchvisions(tree, size, resized):
    images = read(tree, size).train[0]
    transform = v2.Compose([v2.Resize(resized), v2.CenterCrop(size), v2.PILToTensor()])
    expected = torch.stack([transform(image) for image, _ in ImageFolder(tree / "train")])
    assert images.shape == expected.shape
    assert torch.equal(images.loaded(), expected)
    assert torch.equal(torch.cat(list(images.plain_batches(3))), expected)


@pytest.mark.parametrize("size", [32, 112])
def test_random_cuts_are_torchvisions_and_follow_the_seed(tree, size):
    images = read(tree, size).train[0]
    small = [v2.Resize(size), v2.CenterCrop(size), v2.RandomCrop(size, padding=size // 8)]
    transform = v2.Compose([*(small if size <= 64 else [v2.RandomResizedCrop(size)]), v2.RandomHorizontalFlip(),
                            v2.PILToTensor()])  # fmt: skip
    state = torch.get_rng_state()
    cut = Decoder(images)[torch.tensor([7, 2]), torch.tensor([11, 12])]
    assert torch.equal(torch.get_rng_state(), state)
    for row, seed, image in zip((7, 2), (11, 12), cut, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(image, transform(ImageFolder(tree / "train")[row][0]))
    assert not torch.equal(cut, Decoder(images)[torch.tensor([7, 2]), torch.tensor([12, 11])])


def test_choosing_and_joining(tree):
    data = read(tree)
    images, everything = data.train[0], data.train[0].loaded()
    assert torch.equal(images[torch.tensor([3, 1])].loaded(), everything[[3, 1]])
    assert torch.equal(images[data.train[1] == 1][:2].loaded(), everything[5:7])
    exemplars = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    joined = images[:2].and_also(exemplars).and_also(exemplars[:1])[torch.tensor([4, 2, 0])]
    assert torch.equal(joined.loaded(), torch.stack([exemplars[0], exemplars[0], everything[0]]))
    assert torch.equal(images[:1].and_also(images[4:5]).loaded(), everything[[0, 4]])
    assert images[:0].loaded().shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="two folders"):
        images.and_also(data.test[0])


def test_the_fingerprint_tells_images_apart(tree):
    images = read(tree).train[0]
    exemplar = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    prints = {images.fingerprint(), images[:3].fingerprint(), images.and_also(exemplar).fingerprint(),
              images.and_also(exemplar + 1).fingerprint()}  # fmt: skip
    picture(tree / "train/ape/0.png", (41, 41))
    assert len({*prints, images.fingerprint()}) == 5
    assert images.fingerprint() == read(tree).train[0].fingerprint()


# streaming


def epochs(tree, workers, count=2):
    """Two epochs of batches of 4, over 10 files and an exemplar."""
    images, labels = read(tree, 32, workers).train
    data = LabelledImages(
        images.and_also(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), torch.cat([labels, labels[:1]])
    )
    batches = StreamedBatches(data, preprocessing(tree))
    generator = torch.Generator().manual_seed(3)
    return [list(batches.epoch(4, generator)) for _ in range(count)]


def preprocessing(root):
    return Preprocessing.of(load_source(ExperimentConfig(dataset="folder", data_dir=str(root), num_workers=0)), CPU)


def test_workers_change_nothing_and_epochs_differ(tree):
    alone, helped = epochs(tree, 0), epochs(tree, 2)
    for ours, theirs in zip(alone, helped, strict=True):
        assert [len(labels) for _, labels in ours] == [4, 4, 3]
        assert sorted(torch.cat([labels for _, labels in ours]).tolist()) == [0] * 6 + [1] * 5
        for (images, labels), (same_images, same_labels) in zip(ours, theirs, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)
    assert not torch.equal(alone[0][0][0], alone[1][0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(tree, workers):
    images = read(tree, 32, workers).train[0]
    whole = (tree / "train/bee/2.jpg").read_bytes()
    (tree / "train/bee/2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError) as error:
        images.loaded()
    assert "train/bee/2.jpg cannot be read as an image" in str(error.value)
    assert "\n" not in str(error.value)


def test_features_of_files_are_those_of_their_pixels(tree):
    images = read(tree, 32).train[0]
    model, prep = make_network("resnet8", 2, CPU), preprocessing(tree)
    for mirrored in (False, True):
        ours, reference = (features_of(model, x, prep, 4, mirrored) for x in (images, images.loaded()))
        assert torch.equal(ours, reference)


# settings


def test_large_images_have_the_settings_of_imagenet():
    config = resolved(parse_args("--dataset imagenet_sub".split()))
    large = (config.image_size, config.network, config.epochs, config.lr_drops, config.lamda)
    assert large == (224, "resnet18", 90, "1/3,2/3", 10.0)
    small = resolved(parse_args("--dataset folder --image_size 64".split()))
    assert (small.network, small.epochs, small.lr_drops, small.lamda) == ("resnet32", 160, "1/2,3/4", 5.0)
    assert resolved(parse_args("--dataset imagenet --epochs 3 --lamda 2".split())).lamda == 2.0


def test_the_run_folder_names_the_data_folder():
    config = parse_args("--dataset folder --data_dir /data/birds --epochs 3".split())
    assert run_name(dataclasses.replace(config, nb_phases=5)) == "folder_birds_5phases_lucir_mnemonics_epochs3"


def test_imagenet_is_found_below_the_data_folder_and_must_be_whole(tree):
    inner = tree / "seed_1993_subset_100_imagenet" / "data"
    inner.mkdir(parents=True)
    for split in ("train", "val"):
        (tree / split).rename(inner / split)
    with pytest.raises(UsageError, match=r"seed_1993.* holds 2 classes, not 100; --dataset folder takes"):
        load_source(ExperimentConfig(dataset="imagenet_sub", data_dir=str(tree)))


# whole runs


def test_a_run_on_files(mini, tmp_path):
    results = run(mini, tmp_path / "one")
    assert [p["classes_seen"] for p in results["phases"]] == [2, 3, 4]
    assert results["config"]["image_size"] == 64
    assert [p["train_images"] for p in results["phases"]][1] == {"new": 6, "old": 4}
    assert [p["exemplar_bytes"] for p in results["phases"]] == [n * 2 * 3 * 64 * 64 for n in (2, 3, 4)]
    with_workers = run(mini, tmp_path / "two", "--num_workers", 2)
    assert [p["accuracy"] for p in with_workers["phases"]] == [p["accuracy"] for p in results["phases"]]
    exemplars, others = (
        checkpoint.load(tmp_path / name / "phase_2.pt", CPU)["exemplars"]["images"] for name in ("one", "two")
    )
    assert torch.equal(exemplars, others)


def test_a_run_on_files_is_resumed(mini, tmp_path):
    results = run(mini, tmp_path / "run", "--exemplars", "herding")
    for name in ("phase_2.pt", "results.json"):
        (tmp_path / "run" / name).unlink()
    state = checkpoint.load(tmp_path / "run" / "phase_1.pt", CPU)
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", state | {"phases": results["phases"][:2]})
    again = run(mini, tmp_path / "run", "--exemplars", "herding")
    assert [p["accuracy"] for p in again["phases"]] == [p["accuracy"] for p in results["phases"]]


@pytest.mark.parametrize("baseline", ["lucir", "bic", "joint"])
def test_baselines_on_files(mini, tmp_path, baseline):
    results = run(
        mini, tmp_path / "run", "--baseline", baseline, *(["--finetune_epochs", 0] if baseline == "joint" else [])
    )
    assert len(results["phases"]) == 3


def test_resnet18_at_224_pixels(mini, tmp_path):
    results = run(mini, tmp_path / "run", "--image_size", 224, "--network", "auto", "--nb_cl_fg", 3, "--no_adjust",
                  "--max_images_per_class", 2, "--nb_protos", 1, "--mnemonics_steps", 1)  # fmt: skip
    assert (results["config"]["network"], results["config"]["lr_drops"]) == ("resnet18", "1/3,2/3")
    assert results["phases"][0]["exemplar_bytes"] == 3 * 3 * 224 * 224


def test_images_of_old_classes_are_never_opened(mini, tmp_path, monkeypatch):
    """Beyond exemplars, which are in memory: training files of a class are opened in its own phase only."""
    opened, original = [], Decoder.opened
    monkeypatch.setattr(
        Decoder, "opened", lambda self, row: opened.append(self.images.names[row]) or original(self, row)
    )
    phases = []
    original_phase = experiment.run_phase

    def run_phase(*arguments):
        opened.clear()
        original_phase(*arguments)
        phases.append({name.split(b"/")[1].decode() for name in opened if name.startswith(b"train/")})

    monkeypatch.setattr(experiment, "run_phase", run_phase)
    results = run(mini, tmp_path / "run")
    classes = sorted(path.name for path in (mini / "train").iterdir())
    order = [classes[c] for c in results["class_order"]]
    assert phases == [set(order[:2]), {order[2]}, {order[3]}]


def test_a_damaged_file_ends_a_run_with_its_name(mini, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    shutil.copytree(mini, root)
    victim = sorted((root / "train").glob("*/*"))[3]
    victim.write_bytes(b"\xff\xd8 no image")
    monkeypatch.setattr("sys.argv", ["main.py", *TINY, "--data_dir", str(root), "--out", str(tmp_path / "run")])
    assert main.main() == 2
    error = capsys.readouterr().err
    assert str(victim) in error
    assert error.count("\n") == 1


def test_from_real_imagenet_classes_to_a_finished_run(imagenet_mini, tmp_path):
    """10 of 20 classes by the rule of the paper's subset, resized, and all phases with mnemonics: the real commands."""
    script = [sys.executable, str(ROOT / "process_imagenet/generate_imagenet_subset.py"), "--num_classes", "10"]
    made = tmp_path / "made"
    subprocess.run([*script, "--src", imagenet_mini, "--dst", made, "--resize", "32", "--jobs", "1"], check=True)
    wnids = sorted(path.name for path in (imagenet_mini / "train").iterdir())
    drawn = np.random.RandomState(1993).choice(wnids, 10, replace=False).tolist()
    assert (made / "wnids.txt").read_text().split() == drawn
    command = [sys.executable, str(ROOT / "main.py"), *TINY, "--nb_cl_fg", "8", "--data_dir", made]
    done = subprocess.run([*command, "--out", tmp_path / "run"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [p["classes_seen"] for p in results["phases"]] == [8, 9, 10]
    assert (results["config"]["image_size"], results["config"]["network"]) == (32, "resnet8")
