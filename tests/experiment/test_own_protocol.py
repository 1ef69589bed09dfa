"""Class orders, phases and budgets of one's own, and more classes for a finished run."""

import json

import pytest
import torch
from image_folders import TINY, picture, pictures

import main
from eval import evaluate
from mnemonics.engine import files as checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

DIGITS = (
    "--dataset digits --max_images_per_class 10 --network resnet8 --epochs 1 --mnemonics_epochs 1 --mnemonics_steps 1 "
    "--finetune_epochs 1 --nb_protos 2 --device cpu"
).split()


def run(flags, folder):
    """results.json of a run."""
    assert main.main([*flags, "--out", str(folder)]) == 0
    return json.loads((folder / "results.json").read_text())


def test_own_order_and_unequal_phases(tmp_path, capsys, told):
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
    assert "holds a run with other settings (--class_order" in told(main.main, *flags, "--out", tmp_path / "run")


@pytest.mark.parametrize("baseline", ["lucir", "lwf", "bic"])
def test_without_exemplars(tmp_path, baseline):
    flags = [*DIGITS[: DIGITS.index("--finetune_epochs")], "--nb_protos", "0", "--nb_phases", "1"]
    found = run([*flags, "--baseline", baseline], tmp_path / "run")
    for phase in found["phases"]:
        assert phase["exemplars_per_class"] == {"min": 0, "max": 0}
        assert phase["exemplar_bytes"] == 0
        assert phase["train_images"]["old"] == 0
        assert set(phase["accuracy"]) == {"cnn", "cnn_before_finetune"}


@pytest.mark.parametrize(
    ("baseline", "least", "most"), [("lucir --nb_protos 20", 1, 20), ("bic --total_memory 30", 1, 13), ("joint", 1, 20)]
)
def test_each_class_keeps_what_it_has_or_its_quota(tmp_path, baseline, least, most, capsys):
    """Of data whose classes have very different numbers of images."""
    for number, count in enumerate((30, 3, 1, 20)):
        pictures(tmp_path / "images", "abcd"[number], count, seed=number)
    flags = f"--baseline {baseline} --exemplars herding --no_adjust --dataset folder --data_dir {tmp_path / 'images'} "
    flags += "--network resnet8 --nb_phases 1 --epochs 1 --num_workers 0 --device cpu"
    found = run(flags.split(), tmp_path / "run")
    assert found["phases"][-1]["exemplars_per_class"] == {"min": least, "max": most}
    assert ("have fewer than" in capsys.readouterr().out) is (baseline != "joint")


def test_more_classes_for_a_finished_run(tmp_path, capsys, told):
    data = ["--dataset", "folder", "--data_dir", str(tmp_path / "images"), "--num_workers", "0"]
    pictures(tmp_path / "images", ("bee", "cow", "emu"))
    first = run([*TINY, *data, "--order_seed", "7", "--random_seed", "5"], tmp_path / "first")
    extension = [*data, "--extend", str(tmp_path / "first")]
    assert "no other classes than those of" in told(main.main, *extension)
    pictures(tmp_path / "images", ("ape", "dog", "fox"))
    of_its_own = ("--epochs 7", "--random_seed 1993", "--baseline bic", "--nb_runs 2", f"--out {tmp_path / 'first'}")
    for flags in of_its_own:  # the second is the default
        assert f"{flags}: " in told(main.main, *extension, *flags.split())
    longer = run([*extension, "--nb_cl", "2,1"], tmp_path / "longer")
    assert "other images now" not in capsys.readouterr().out
    assert longer["phases"][:2] == first["phases"]
    assert [phase["classes_seen"] for phase in longer["phases"]] == [2, 3, 5, 6]
    names = longer["data"]["class_names"]
    before = [first["data"]["class_names"][c] for c in first["class_order"]]
    assert [names[c] for c in longer["class_order"]] == [*before, "ape", "dog", "fox"]
    for folder, status, phases in (("first", 0, first["phases"]), ("longer", 2, longer["phases"][2:])):
        assert evaluate.main([str(tmp_path / folder), "--out", str(tmp_path / "evaluated" / folder)]) == status
        again = json.loads((tmp_path / "evaluated" / folder / "evaluation.json").read_text())
        assert [p["accuracy"]["nme"] for p in again["phases"]] == [p["accuracy"]["nme"] for p in phases]
    assert "no checkpoint of phase 0, 1; averages are over the others" in capsys.readouterr().err
    picture(tmp_path / "images" / "train" / "bee" / "0.png", (20, 20), seed=77)
    run([*extension, "--nb_cl", "3"], tmp_path / "of other images")
    assert "its classes have other images now (images with other contents)" in capsys.readouterr().out
    (tmp_path / "images" / "train" / "cow").rename(tmp_path / "cow")
    (tmp_path / "images" / "val" / "cow").rename(tmp_path / "cow_val")
    assert "'cow', a class of" in told(main.main, *extension)


def test_a_class_that_would_lose_its_only_page_of_coded_exemplars_refuses_an_extension(tmp_path, told):
    data = ["--data_dir", str(pictures(tmp_path / "images", ("bee", "cow", "emu")))]
    where, coded = TINY.index("--nb_protos"), "--method baseline --exemplar_format png --total_memory 6".split()
    flags = [*TINY[:where], *TINY[where + 2 :], *data, *coded]
    run(flags, tmp_path / "first")  # in the end two images of each class, in one page
    pictures(tmp_path / "images", ("ape",))
    extension = ["--dataset", "folder", *data, "--extend", str(tmp_path / "first"), "--out", str(tmp_path / "longer")]
    words = "with 4 classes some have a share of less than their first page of coded exemplars"
    assert words in told(main.main, *extension)


def test_an_extension_that_was_stopped_goes_on(tmp_path, capsys):
    data = ["--dataset", "folder", "--data_dir", str(tmp_path / "images"), "--num_workers", "0"]
    pictures(tmp_path / "images", ("bee", "cow", "emu"))
    run([*TINY, *data], tmp_path / "first")
    pictures(tmp_path / "images", ("ape", "dog"))
    extension = [*data, "--extend", str(tmp_path / "first"), "--nb_cl", "1"]
    state = checkpoint.load(tmp_path / "first" / "phase_1.pt", torch.device("cpu"))
    (tmp_path / "damaged").mkdir()
    checkpoint.save(tmp_path / "damaged" / "phase_1.pt", state | {"model": {}})
    assert main.main([*data, "--extend", str(tmp_path / "damaged"), "--out", str(tmp_path / "not made")]) == 2
    assert "damaged/phase_1.pt: its weights do not fit" in capsys.readouterr().err
    whole = run(extension, tmp_path / "whole")
    run(extension, tmp_path / "stopped")
    for name in ("phase_3.pt", "checkpoint.pt", "checkpoint.previous.pt", "results.json"):
        (tmp_path / "stopped" / name).unlink()
    resumed = run(extension, tmp_path / "stopped")
    timeless = [[{**phase, "seconds": 0, "peak_memory_bytes": 0} for phase in r["phases"]] for r in (whole, resumed)]
    assert timeless[0] == timeless[1]
