"""Two data sets under one name: the second is not taken for the first, wherever their paths cross."""

import json
import shutil
from pathlib import Path

import pytest
from image_folders import pictures

import main
from eval import evaluate
from mnemonics.data.identity import identity_of, order_by_name
from mnemonics.data.sources import load_source
from mnemonics.experiment.state import parse_args, set_up

FLAGS = (
    "--dataset folder --method baseline --network resnet8 --nb_phases 1 --epochs 1 --nb_protos 2 --num_workers 0 "
    "--device cpu"
).split()


def identity(root):
    return identity_of(load_source(parse_args(["--dataset", "folder", "--data_dir", str(root)])))


def command(root, *flags):
    return main.main([*FLAGS, "--data_dir", str(root), *map(str, flags)])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A data set, and the folder of a run on it."""
    folder = tmp_path_factory.mktemp("identity")
    root = pictures(folder / "A" / "images", "abcd", 4)
    assert command(root, "--out", folder / "run") == 0
    return root, folder / "run"


OTHERS = {
    "other classes": (lambda root: pictures(root, "abcx", 4), "'d', which is not there any more"),
    "an image more": (lambda root: pictures(root, "abcd", 5), "16 train images there, 20 now"),
    "other pixels": (lambda root: pictures(root, "abcd", 4, seed=1), "images with other contents"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_is_not_resumed_with_other_data(original, tmp_path, other, told):
    make, words = OTHERS[other]
    root, folder = make(tmp_path / "B" / "images"), shutil.copytree(original[1], tmp_path / "run")
    before = (folder / "results.json").read_bytes()
    said = told(main.main, *FLAGS, "--data_dir", root, "--out", folder)
    assert said.startswith("main.py: --data_dir: the run in ")
    assert words in said
    assert (folder / "results.json").read_bytes() == before


def test_images_of_equal_names_and_sizes_are_other_images(tmp_path):
    roots = [pictures(tmp_path / str(seed), seed=seed, ending="bmp") for seed in (0, 1, 0)]
    sizes = [[path.stat().st_size for path in sorted(root.rglob("*.bmp"))] for root in roots]
    assert sizes[0] == sizes[1]
    prints = [identity(root)["fingerprint"] for root in roots]
    assert prints[0] == prints[2] != prints[1]


def test_two_data_sets_are_two_folders_and_two_models(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = [original[0], pictures(tmp_path / "B" / "images", "abcd", 4, seed=1)]
    folders = [set_up(parse_args([*FLAGS, "--data_dir", str(root)])).folder for root in roots]
    assert folders[0] != folders[1]
    for root in (*roots, roots[0]):
        assert command(root, "--phase0_dir", "models", "--random_seed", 5) == 0
    assert len(list(Path("models").glob("*.pt"))) == 2


def test_a_moved_run_goes_on_and_names_the_places_it_uses(original, tmp_path):
    root, folder = shutil.copytree(original[0], tmp_path / "moved"), shutil.copytree(original[1], tmp_path / "run")
    assert command(root, "--out", folder) == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["data_dir"], config["out"]) == (str(root), str(folder))


def test_evaluation_finds_classes_by_their_names(original, tmp_path, capsys):
    folder, reference = original[1], json.loads((original[1] / "results.json").read_text())
    renamed = shutil.copytree(original[0], tmp_path / "renamed")
    for split in ("train", "val"):
        (renamed / split / "a").rename(renamed / split / "z")
    assert evaluate.main([str(folder), "--data_dir", str(renamed), "--out", str(tmp_path / "out")]) == 2
    assert "not the classes that the network was trained on" in capsys.readouterr().err
    more = pictures(shutil.copytree(original[0], tmp_path / "more"), "abcd", 5)
    assert evaluate.main([str(folder), "--data_dir", str(more), "--out", str(tmp_path / "out")]) == 0
    assert "other data than the run's: 16 train images there, 20 now" in capsys.readouterr().out
    assert reference["data"]["class_names"] == list("abcd")


def test_an_identity_in_another_order_is_mapped():
    stored, now = ({"class_names": list(names), "fingerprint": names} for names in ("abcd", "badc"))
    assert order_by_name((3, 0, 1, 2), stored, now) == (2, 1, 0, 3)
