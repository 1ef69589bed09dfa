"""Tiny runs of the real command on real images."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from mnemonics import algorithm as experiment
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.state import parse_args

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--dataset digits --max_images_per_class 40 --nb_cl_fg 4 --nb_phases 3 --network resnet8 --epochs 2 "
        "--nb_protos 4 --mnemonics_val_batch_size 64 --mnemonics_epochs 2 "
        "--mnemonics_steps 2 --mnemonics_outer_lr 0.1 --finetune_epochs 2 --finetune_lr 0.3").split()  # fmt: skip


def run(folder, *arguments):
    """Run in this process. Returns results.json."""
    experiment.run(parse_args([*TINY, "--out", str(folder), *map(str, arguments)]))
    return json.loads((folder / "results.json").read_text())


def numbers(results):
    """What must repeat bit for bit: everything but times, memory, machine and folder names."""
    phases = [{k: v for k, v in p.items() if k not in ("seconds", "peak_memory_bytes")} for p in results["phases"]]
    return {k: v for k, v in results.items() if k not in ("environment", "config", "sha256")} | {"phases": phases}


def exemplars(folder, phase):
    state = checkpoint.load(folder / f"phase_{phase}.pt", torch.device("cpu"))["exemplars"]
    return state["images"], state["labels"]


@pytest.fixture(scope="module")
def mnemonics_run(tmp_path_factory):
    """A finished run of main.py, started as a user does, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "mnemonics"
    command = [sys.executable, "main.py", *TINY, "--out", str(folder)]
    return folder, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)


def test_run_folder_and_table(mnemonics_run):
    folder, process = mnemonics_run
    names = {p.name for p in folder.iterdir()}
    expected = {"config.json", "results.json", "log.txt", "checkpoint.pt", "report.html"}
    expected |= {f"phase_{i}.pt" for i in range(4)} | {f"exemplars_phase_{i}.png" for i in range(4)}
    assert expected <= names
    assert any(name.startswith("events.") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert len(image.convert("L").getcolors()) > 5
    rows = [line.split() for line in process.stdout.splitlines() if line[:5].strip().isdigit()]
    assert [row[:2] for row in rows] == [["0", "4"], ["1", "6"], ["2", "8"], ["3", "10"]]
    assert "average accuracy" in process.stdout
    assert "phase 3: 10 classes" in (folder / "log.txt").read_text()


def test_results_hold_what_was_measured(mnemonics_run):
    folder, _ = mnemonics_run
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["exemplars"] == "mnemonics"
    assert results["config"]["nb_cl_fg"] == 4
    assert (results["headline"], results["config"]["baseline"]) == ("cnn", "lucir")
    assert results["config"]["weight_transfer"] is True
    assert len(results["class_order_sha256"]) == 64
    assert {"torch", "device", "cpu_count", "commit", "command"} <= set(results["environment"])
    last = results["phases"][-1]
    assert last["exemplars_per_class"] == {"min": 4, "max": 4}
    assert last["exemplar_bytes"] == 10 * 4 * 3 * 16 * 16
    assert last["train_images"]["old"] == 8 * 4
    keys = {"cnn", "nme", "cnn_before_finetune", "nme_before_finetune"}
    assert set(last["accuracy"]) == set(last["phase0_accuracy"]) == keys
    assert last["accuracy"] != {k: last["accuracy"][k.removesuffix("_before_finetune")] for k in keys}
    assert [len(p["accuracy_by_phase_of_origin"]["nme"]) for p in results["phases"]] == [1, 2, 3, 4]
    assert {"train", "exemplars", "finetune", "evaluate"} == set(last["seconds"])
    assert last["exemplar_validation_loss"]["optimised"] < last["exemplar_validation_loss"]["start"]
    assert 0.1 < last["exemplar_change_grey_levels"] < 64
    accuracies = [p["accuracy"]["nme"] for p in results["phases"]]
    assert results["summary"]["average_accuracy"]["nme"] == pytest.approx(sum(accuracies) / 4, abs=0.006)
    phase0 = [p["phase0_accuracy"]["nme"] for p in results["phases"]]
    assert results["summary"]["forgetting"]["nme"] == pytest.approx(phase0[0] - phase0[-1])


def test_the_same_command_gives_the_same_numbers(mnemonics_run, tmp_path):
    folder, _ = mnemonics_run
    again = run(tmp_path / "again")
    assert numbers(again) == numbers(json.loads((folder / "results.json").read_text()))
    assert torch.equal(exemplars(folder, 3)[0], exemplars(tmp_path / "again", 3)[0])


def test_a_finished_run_is_not_run_again_and_lost_results_are_written_again(mnemonics_run, tmp_path):
    folder, reference = shutil.copytree(mnemonics_run[0], tmp_path / "done"), mnemonics_run[0] / "results.json"
    before = (folder / "phase_3.pt").stat().st_mtime_ns
    run(folder)
    assert (folder / "results.json").read_bytes() == reference.read_bytes()
    (folder / "results.json").unlink()
    assert numbers(run(folder)) == numbers(json.loads(reference.read_text()))
    assert (folder / "phase_3.pt").stat().st_mtime_ns == before


def test_starting_anew_leaves_nothing_of_the_old_run_and_keeps_other_files(mnemonics_run, tmp_path):
    folder = shutil.copytree(mnemonics_run[0], tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    arguments = [a for a in TINY if a not in ("--nb_phases", "3")]
    flags = [*arguments, "--nb_cl_fg", "8", "--nb_cl", "2", "--no-resume", "--out", str(folder)]
    experiment.run(parse_args(flags))
    assert len(json.loads((folder / "results.json").read_text())["phases"]) == 2
    assert sorted(p.name for p in folder.glob("phase_*.pt")) == ["phase_0.pt", "phase_1.pt"]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flags", [[], ["--no-resume"]])
def test_files_of_no_run_are_not_written_over(tmp_path, flags):
    for name in ("config.json", "log.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=r"--out .*config\.json, log\.txt"):
        run(tmp_path, *flags)
    assert [(tmp_path / name).read_text() for name in ("config.json", "log.txt")] == ["{}", "{}"]


def test_ncm_only_on_request(tmp_path):
    flags = "--exemplars random --nb_phases 1 --epochs 1".split()
    with_ncm, without = run(tmp_path / "with", "--ncm", *flags), run(tmp_path / "without", *flags)
    assert "ncm" in with_ncm["phases"][0]["accuracy"]
    assert "ncm" in with_ncm["summary"]["average_accuracy"]
    assert "ncm" not in without["phases"][0]["accuracy"]
    for a, b in zip(with_ncm["phases"], without["phases"], strict=True):
        assert {k: v for k, v in a["accuracy"].items() if not k.startswith("ncm")} == b["accuracy"]


@pytest.mark.parametrize(
    ("exemplar_method", "baseline"),
    [("mnemonics", "lucir"), ("herding", "lwf"), ("random", "bic"), ("herding", "finetune")],
)
def test_images_of_other_classes_are_never_read(mnemonics_run, tmp_path, monkeypatch, exemplar_method, baseline):
    """In each phase every training image that is not of that phase's classes is noise: the numbers stay the same."""
    if exemplar_method == "mnemonics":
        arguments, reference = (), json.loads((mnemonics_run[0] / "results.json").read_text())
    else:
        arguments = ("--exemplars", exemplar_method, "--baseline", baseline, "--epochs", 1)
        arguments += ("--finetune_epochs", 0 if baseline == "finetune" else 1)
        reference = run(tmp_path / "reference", *arguments)
    run_phase = experiment.run_phase

    def run_phase_on_poisoned_data(context, *rest):
        source, phase, order = context.scenario.source, context.phase, context.scenario.protocol.order
        others = ~torch.isin(source.train_class_ids, torch.tensor(phase.class_ids))
        unseen = ~torch.isin(source.test_class_ids, torch.tensor(order[: phase.seen]))
        kept = source.train_images[others].clone(), source.test_images[unseen].clone()
        source.train_images[others] = torch.randint(0, 256, kept[0].shape, dtype=torch.uint8)
        source.test_images[unseen] = torch.randint(0, 256, kept[1].shape, dtype=torch.uint8)
        result = run_phase(context, *rest)
        source.train_images[others], source.test_images[unseen] = kept
        return result

    monkeypatch.setattr(experiment, "run_phase", run_phase_on_poisoned_data)
    assert numbers(run(tmp_path / "poisoned", *arguments)) == numbers(reference)


def test_optimised_exemplars_are_not_training_images_and_old_ones_are_adjusted_if_asked(mnemonics_run, tmp_path):
    folder = mnemonics_run[0]
    source = load_source(ExperimentConfig(dataset="digits"))
    images, labels = exemplars(folder, 3)
    assert not any((source.train_images == image).flatten(1).all(1).any() for image in images)
    assert labels.tolist() == [label for label in range(10) for _ in range(4)]
    older, _ = exemplars(folder, 2)
    assert torch.equal(images[: len(older)], older)
    run(tmp_path / "adjusted", "--adjust_always", "--exemplars", "random")
    older, newer = (exemplars(tmp_path / "adjusted", phase)[0] for phase in (2, 3))
    assert (newer[: len(older)] != older).flatten(1).any(1).all()


@pytest.mark.parametrize("baseline", ["lucir", "bic"])
def test_fixed_total_memory(tmp_path, baseline):
    arguments = " ".join(TINY).replace("--nb_protos 4", "--total_memory 60").split()
    arguments += ["--baseline", baseline, *"--exemplars herding --epochs 1 --out".split(), str(tmp_path / "run")]
    experiment.run(parse_args(arguments))
    phases = json.loads((tmp_path / "run" / "results.json").read_text())["phases"]
    assert [p["exemplars_per_class"] for p in phases] == [{"min": n, "max": n} for n in (15, 10, 7, 6)]
    assert all(p["exemplar_bytes"] <= 60 * 3 * 16 * 16 for p in phases)
    state = checkpoint.load(tmp_path / "run" / "phase_1.pt", torch.device("cpu"))
    held_out = state["exemplars"]["held_out"]
    assert (len(held_out), held_out.sum()) == (60, 6 if baseline == "bic" else 0)


def test_learning_happens(tmp_path):
    """Not a toy result: after 12 epochs a ResNet-8 reads most digits, and iCaRL keeps most of what it learned."""
    flags = "--method baseline --baseline icarl --epochs 12 --nb_protos 20 --max_images_per_class 140"
    results = run(tmp_path / "run", *flags.split(), "--nb_cl_fg", 5, "--nb_phases", 1)
    assert results["phases"][0]["accuracy"]["cnn"] > 90
    assert results["phases"][-1]["accuracy"]["nme"] > 65


def test_cifar100_subset(cifar100_mini, tmp_path, capsys):
    """The CIFAR-100 path on real images: counts, order, pixels."""
    arguments = ("--data_dir", cifar100_mini, "--dataset", "cifar100", "--method", "baseline", "--baseline", "icarl",
                 "--network", "resnet8", "--nb_phases", 2, "--epochs", 1, "--nb_protos", 4, "--eval_batch_size", 300,
                 "--out", tmp_path / "run")  # fmt: skip
    assert main.main([*map(str, arguments)]) == 0
    assert "1000 training and 300 test images" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["class_order"][:5] == [68, 56, 78, 8, 23]
    assert [p["train_images"] for p in results["phases"]] == [
        {"new": 500, "old": 0}, {"new": 250, "old": 200}, {"new": 250, "old": 300}]  # fmt: skip
    images, labels = exemplars(tmp_path / "run", 2)
    assert torch.bincount(labels).tolist() == [4] * 100
    source = load_source(ExperimentConfig(dataset="cifar100", data_dir=str(cifar100_mini)))
    for index in range(0, 400, 37):
        own, _ = source.train([results["class_order"][labels[index]]])
        assert (own == images[index]).flatten(1).all(1).any()


def test_a_folder_with_other_settings_is_refused(mnemonics_run, told):
    error = told(main.main, *TINY, "--out", mnemonics_run[0], "--epochs", 7, "--baseline", "lwf")
    assert "--epochs 2 there, 7 now" in error
    assert "--baseline lucir there, lwf now" in error
