"""Class orders and phases of one's own, runs without exemplars, and more classes for a finished run."""

import json

import pytest
from image_folders import TINY, pictures

import main
from eval import evaluate

pytestmark = pytest.mark.usefixtures("no_pictures")

DIGITS = (
    "--dataset digits --max_images_per_class 10 --network resnet8 --epochs 1 --mnemonics_epochs 1 --mnemonics_steps 1 "
    "--finetune_epochs 1 --nb_protos 2 --device cpu"
).split()


def run(flags, folder):
    """results.json of a run."""
    assert main.main([*flags, "--out", str(folder)]) == 0
    return json.loads((folder / "results.json").read_text())


def test_own_order_and_unequal_phases(tmp_path, capsys):
    order, flags = tmp_path / "order.txt", [*DIGITS, "--nb_cl", "3,2", "--class_order", str(tmp_path / "order.txt")]
    order.write_text("\n".join("9876543210"))
    found = run(flags, tmp_path / "run")
    assert found["class_order"] == list(range(10))[::-1]
    assert [phase["classes_seen"] for phase in found["phases"]] == [5, 8, 10]
    assert "phases: 5 classes, then 3,2" in capsys.readouterr().out
    assert run(flags, tmp_path / "run")["sha256"] == found["sha256"]  # the same command finds it done
    assert evaluate.main([str(tmp_path / "run"), "--out", str(tmp_path / "evaluated")]) in (0, None)
    again = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert [p["accuracy"]["cnn"] for p in again["phases"]] == [p["accuracy"]["cnn"] for p in found["phases"]]
    order.write_text("\n".join("9876543201"))
    assert main.main([*flags, "--out", str(tmp_path / "run")]) == 2
    assert "holds a run with other settings (--class_order" in capsys.readouterr().err


@pytest.mark.parametrize("baseline", ["lucir", "lwf", "bic"])
def test_without_exemplars(tmp_path, baseline):
    flags = [*DIGITS[: DIGITS.index("--finetune_epochs")], "--nb_protos", "0", "--nb_phases", "1"]
    found = run([*flags, "--baseline", baseline], tmp_path / "run")
    for phase in found["phases"]:
        assert phase["exemplars_per_class"] == {"min": 0, "max": 0}
        assert phase["exemplar_bytes"] == 0
        assert phase["train_images"]["old"] == 0
        assert set(phase["accuracy"]) == {"cnn", "cnn_before_finetune"}


@pytest.mark.parametrize("flags", ["--baseline icarl", "--exemplars herding", "--finetune_epochs 2"])
def test_what_needs_exemplars_is_refused_without(flags, capsys):
    assert main.main(["--dataset", "digits", "--nb_protos", "0", *flags.split()]) == 2
    assert "--nb_protos 0: " in capsys.readouterr().err


def test_more_classes_for_a_finished_run(tmp_path, capsys):
    data = ["--dataset", "folder", "--data_dir", str(tmp_path / "images"), "--num_workers", "0"]
    pictures(tmp_path / "images", ("bee", "cow", "emu"))
    first = run([*TINY, *data], tmp_path / "first")
    extension = [*data, "--extend", str(tmp_path / "first")]
    assert main.main(extension) == 2
    assert "no other classes than those of" in capsys.readouterr().err
    pictures(tmp_path / "images", ("ape", "dog", "fox"))
    assert main.main([*extension, "--epochs", "7"]) == 2
    assert "--epochs 7: " in capsys.readouterr().err
    longer = run([*extension, "--nb_cl", "2,1"], tmp_path / "longer")
    assert longer["phases"][:2] == first["phases"]
    assert [phase["classes_seen"] for phase in longer["phases"]] == [2, 3, 5, 6]
    names = longer["data"]["class_names"]
    before = [first["data"]["class_names"][c] for c in first["class_order"]]
    assert [names[c] for c in longer["class_order"]] == [*before, "ape", "dog", "fox"]
    (tmp_path / "images" / "train" / "cow").rename(tmp_path / "cow")
    (tmp_path / "images" / "val" / "cow").rename(tmp_path / "cow_val")
    assert main.main(extension) == 2
    assert "'cow', a class of" in capsys.readouterr().err


def test_a_class_that_would_lose_its_only_page_of_coded_exemplars_refuses_an_extension(tmp_path, capsys):
    data = ["--data_dir", str(pictures(tmp_path / "images", ("bee", "cow", "emu")))]
    where = TINY.index("--nb_protos")
    flags = [
        *TINY[:where],
        *TINY[where + 2 :],
        *data,
        *"--method baseline --exemplar_format png --total_memory 6".split(),
    ]
    run(flags, tmp_path / "first")  # in the end two images of each class, in one page
    pictures(tmp_path / "images", ("ape",))
    extension = ["--dataset", "folder", *data, "--extend", str(tmp_path / "first"), "--out", str(tmp_path / "longer")]
    assert main.main(extension) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "with 4 classes some have a share of less than their first page of coded exemplars" in said


def test_an_extension_that_was_stopped_goes_on(tmp_path):
    data = ["--dataset", "folder", "--data_dir", str(tmp_path / "images"), "--num_workers", "0"]
    pictures(tmp_path / "images", ("bee", "cow", "emu"))
    run([*TINY, *data], tmp_path / "first")
    pictures(tmp_path / "images", ("ape", "dog"))
    extension = [*data, "--extend", str(tmp_path / "first"), "--nb_cl", "1"]
    whole = run(extension, tmp_path / "whole")
    run(extension, tmp_path / "stopped")
    for name in ("phase_3.pt", "checkpoint.pt", "checkpoint.previous.pt", "results.json"):
        (tmp_path / "stopped" / name).unlink()
    resumed = run(extension, tmp_path / "stopped")
    timeless = [[{**phase, "seconds": 0, "peak_memory_bytes": 0} for phase in r["phases"]] for r in (whole, resumed)]
    assert timeless[0] == timeless[1]
