"""Evaluating stored networks: our runs, and checkpoints of the authors' code."""

import json
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from authors_networks import authors_modules, make, save, stand_ins
from PIL import Image

from eval import evaluate
from mnemonics import __main__, algorithm
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.evaluation import confusion_matrix
from mnemonics.experiment import stored
from mnemonics.experiment.state import parse_args
from mnemonics.protocol import class_order

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--dataset digits --max_images_per_class 30 --nb_cl_fg 6 --nb_cl 2 --network resnet8 --epochs 1 --nb_protos 10 "
    "--mnemonics_val_batch_size 64 --mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1"
).split()
NAME = "cifar100_nfg80_ncls10_nproto20_mtl_exp01"
MODEL = "run_0_iteration_{}_model.pth"


@pytest.fixture
def run(capsys):
    """Runs a command in this process. Returns what it printed or, with status 2, its line on standard error."""

    def run(main, *arguments, status=0):
        assert main([str(a) for a in arguments]) == status
        out, error = capsys.readouterr()
        assert error.count("\n") == (status == 2)
        return error if status else out

    return run


@pytest.fixture
def evaluated(run, cifar100_mini, tmp_path):
    """Evaluates into tmp_path/out. Returns what evaluation.json holds or, with status 2, the message."""

    def evaluated(*arguments, **expected):
        out = tmp_path / "out"
        said = run(evaluate.main, "--data_dir", cifar100_mini, "--out", out, *arguments, **expected)
        return said if expected else json.loads((out / "evaluation.json").read_text())

    return evaluated


def measured(phase):
    """The numbers of a phase of results.json or evaluation.json that are about the stored network."""
    keys = ("accuracy", "phase0_accuracy", "accuracy_by_phase_of_origin")
    return {k: {n: v for n, v in phase[k].items() if not n.endswith("_before_finetune")} for k in keys}


def cnn(found):
    return {p["phase"]: (p["accuracy"]["cnn"], p["phase0_accuracy"]["cnn"]) for p in found["phases"]}


@pytest.fixture(scope="module")
def bic(tmp_path_factory):
    """A run folder with weight transfer, and with exemplars that are held out; NCM too."""
    folder = tmp_path_factory.mktemp("runs") / "bic"
    algorithm.run(parse_args([*TINY, "--baseline", "bic", "--ncm", "--out", str(folder)]))
    return folder


@pytest.fixture
def results(bic):
    return json.loads((bic / "results.json").read_text())


def test_a_run_gets_the_numbers_of_its_results(bic, results, tmp_path, run):
    said = run(evaluate.main, bic, "--out", tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for key in ("summary", "headline", "class_order", "class_order_sha256"):
        assert found[key] == results[key]
    for mine, its in zip(found["phases"], results["phases"], strict=True):
        assert measured(mine) == measured(its)
        assert mine.items() >= {k: its[k] for k in ("phase", "classes_seen", "exemplars_per_class")}.items()
        assert mine["weight_transfer"] is (mine["phase"] > 0)
    text = (tmp_path / "evaluation.md").read_text()
    assert text in said
    for number in (results["summary"]["average_accuracy"]["nme"], results["summary"]["forgetting"]["cnn"]):
        assert f"{number:.2f}" in text
    assert all(f"{name} = " in text for name in ("CNN", "NME", "NCM"))
    with Image.open(tmp_path / "confusion.png") as image:
        assert len(image.convert("L").getcolors()) > 5


def test_one_phase_alone_and_a_run_without_some(bic, results, tmp_path, evaluated):
    folder = shutil.copytree(bic, tmp_path / "bic")
    alone = evaluated(folder / "phase_1.pt", "--eval_batch_size", 37)
    assert [measured(p) for p in alone["phases"]] == [measured(results["phases"][1])]
    assert alone["summary"]["forgetting"] == {"cnn": None, "nme": None, "ncm": None}
    assert alone["missing_phases"] == []
    (folder / "phase_1.pt").unlink()
    assert f"{folder}: no checkpoint of phase 1;" in evaluated(folder, status=2)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [measured(p) for p in found["phases"]] == [measured(results["phases"][i]) for i in (0, 2)]
    assert (found["missing_phases"], found["summary"]["forgetting"]) == ([1], results["summary"]["forgetting"])
    assert "mean over 2 of all 3 phases" in (tmp_path / "out" / "evaluation.md").read_text()


def test_a_checkpoint_of_format_3(bic, results, tmp_path, evaluated):
    """It has the exemplars that are held out apart."""
    state = checkpoint.load(bic / "phase_2.pt", torch.device("cpu"))
    mask = state["exemplars"].pop("held_out")
    parts = [{name: rows[kept] for name, rows in state["exemplars"].items()} for kept in (~mask, mask)]
    assert all(len(part["labels"]) for part in parts)
    checkpoint.save(tmp_path / "old.pt", state | {"format": 3, "exemplars": parts[0], "held_out": parts[1]})
    assert [measured(p) for p in evaluated(tmp_path / "old.pt")["phases"]] == [measured(results["phases"][2])]


@pytest.mark.parametrize("name", ["cnn", "nme"])
def test_what_image_files_are_taken_for_is_what_the_evaluation_says(bic, results, tmp_path, run, monkeypatch, name):
    source = load_source(parse_args(TINY))
    monkeypatch.setattr(stored, "load_source", None)  # the data set is not needed
    files = [tmp_path / f"{i}.png" for i in range(len(source.test_images))]
    for file, image in zip(files, source.test_images, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    said = run(__main__.main, "predict", bic, *files, "--classifier", name, "--json", "--top", 20)
    found = [json.loads(line) for line in said.splitlines()]
    assert [one["file"] for one in found] == list(map(str, files))
    right = [int(one["predictions"][0]["class"]) for one in found] == source.test_class_ids.numpy()
    assert round(100 * right.mean(), 2) == results["phases"][-1]["accuracy"][name]
    scores = np.array([[each["score"] for each in one["predictions"]] for one in found])  # (images, 10)
    assert (np.diff(scores) <= 0).all()
    assert np.allclose(scores.sum(1), 1, atol=1e-5) == (name == "cnn")
    table = run(__main__.main, "predict", bic / "phase_0.pt", files[0], "--top", 2).splitlines()
    assert [line.split()[0] for line in table[:3]] == ["file", *[str(files[0])] * 2]
    assert "phase 0, 6 classes; CNN = " in table[-1]


NAMES = {"class_names": ["a"] * 10, "train_images": [], "test_images": [], "fingerprint": ""}  # and no more


@pytest.mark.parametrize(
    ("changed", "flags", "message"),
    [
        ({}, [], "IMAGE: {folder}/no.png cannot be read as an image (cannot identify"),
        ({}, ["--top", 0], "--top 0: must be greater than 0"),
        ({"data": None}, [], "{folder}/phase.pt: older versions did not store"),
        ({"data": NAMES}, [], "{folder}/phase.pt: older versions did not store"),
        ({"phase": -1}, [], "{folder}/phase.pt: no phase of this run is finished"),
    ],
)
def test_what_cannot_be_predicted(bic, tmp_path, run, changed, flags, message):
    state = checkpoint.load(bic / "phase_0.pt", torch.device("cpu"))
    checkpoint.save(tmp_path / "phase.pt", state | changed)
    (tmp_path / "no.png").write_text("text")
    error = run(__main__.main, "predict", tmp_path / "phase.pt", tmp_path / "no.png", *flags, status=2)
    assert message.format(folder=tmp_path) in error


REFUSED = {  # what phase_0.pt in a folder of its own is changed to, or a flag -> the message
    "page": (lambda old: b"<html>hello", "{file}: not a checkpoint of this program"),
    "truncated": (lambda old: old[:-1000], "{file}: not a checkpoint of this program, or a damaged one"),
    "another phase": ({"phase": 1}, "{file}: of another run or phase"),
    "another order": ({"class_order": [0, 0, 1]}, "{file}: not a checkpoint of this program"),
    "other data": ({"class_order": [*range(20)], "data": None}, "{folder}: its class order has 20 classes, digits has"),
    "another format": ({"format": 1}, "checkpoint format 1, this version"),
    "no weights": ({"model": {}}, "{file}: its weights do not fit the network resnet8"),
    "--dataset cifar100": ({}, "--dataset cifar100: {folder} was made with digits; leave it out"),
    "--order_seed 7": ({}, "--order_seed 7: {folder} was made with 1993"),
    "--eval_batch_size 0": ({}, "--eval_batch_size 0: must be greater than 0"),
    "--device cuda:63": ({}, "--device cuda:63"),
    "--out /dev/null/x": ({}, "--out /dev/null/x: cannot be written"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_evaluated_is_refused(kind, bic, tmp_path, evaluated):
    change, message = REFUSED[kind]
    path = Path(shutil.copy(bic / "phase_0.pt", tmp_path))
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        checkpoint.save(path, checkpoint.load(path, torch.device("cpu")) | change)
    flags = kind.split() if kind.startswith("--") else ()
    assert message.format(file=path, folder=tmp_path) in evaluated(tmp_path, *flags, status=2)
    assert not any((tmp_path / "out").rglob("*"))


WRONG = {  # a checkpoint, or a part of it -> contents that no run writes
    "all": [{"phase": "x"}, {"data": "x"}, {"data": {}}, {"class_order": [0, 2]}],
    "settings": [
        *({"baseline": "mine"}, {"exemplars": "mine"}, {"dataset": None}, {"nb_cl_fg": "2"}, {"nb_cl": [1]}),
        *({"image_size": "x"}, {"max_images_per_class": "x"}, {"base_lr": "0.1"}, {"network": "nope"}),
    ],
    "data": [
        *({"class_names": list(range(10))}, {"class_names": []}, {"train_images": None}, {"train_images": ["x"]}),
        *({"mean": ["x"]}, {"image_size": "x"}, {"image_size": -1}, {"fingerprint": 0}),
    ],
    "exemplars": [
        *({"labels": torch.tensor([99])}, {"labels": torch.tensor([-1])}, {"labels": torch.zeros(2)}),
        *({"labels": torch.zeros(2, 2, dtype=torch.int64)}, {"images": torch.zeros(1, 3, 4, 4, 1)}, {"images": "x"}),
    ],
}


@pytest.mark.parametrize(("part", "content"), [(part, content) for part in WRONG for content in WRONG[part]])
def test_a_content_that_no_run_writes(part, content, bic, tmp_path):
    state = stored.read_state(bic / "phase_0.pt", torch.device("cpu"))
    checkpoint.save(tmp_path / "c.pt", state | (content if part == "all" else {part: state[part] | content}))
    with pytest.raises(UsageError, match="not a checkpoint of this program, or a damaged one"):
        stored.read_state(tmp_path / "c.pt", torch.device("cpu"))


def test_confusion_matrix_by_hand():
    counts = confusion_matrix(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 2, 1]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


@pytest.fixture(scope="module")
def theirs(cifar100_mini, tmp_path_factory):
    """A folder as the authors' code leaves it, phases of 80 + 2 x 10 classes, and the accuracies of its networks on the
    test images, computed from the original modules: {phase: (all classes, phase-0 classes)}."""
    folder, order = tmp_path_factory.mktemp("logs") / NAME, class_order(100, 1993)
    folder.mkdir()
    source, expected = load_source(ExperimentConfig(data_dir=str(cifar100_mini))), {}
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    networks = (("resnet_cifar", 3, 80), ("resnetmtl_cifar", 3, 80, 10), ("resnetmtl_cifar", 3, 90, 10))
    with stand_ins(), torch.no_grad():
        torch.manual_seed(0)
        for phase, arguments in enumerate(networks):
            network, seen = make(*arguments), sum(arguments[2:])
            images, ids = source.test(order[:seen])
            images, labels = (images / 255 - mean) / std, torch.tensor([order.index(i) for i in ids])
            learn_by_heart(network, images, labels)
            save(network, folder / MODEL.format(phase + 7), old_format=phase < 2)
            save(network, folder / f"run_0_iteration_{phase + 7}_free_model.pth", True)  # what else lies there
            right = (network(images).argmax(1) == labels).double()
            shares = right.mean().item(), right[labels < 80].mean().item()
            expected[phase] = tuple(round(100 * share, 2) for share in shares)
    assert all(percent > 10 for percents in expected.values() for percent in percents)
    return folder, expected


def learn_by_heart(network, images, labels):
    """Set the class weights to the mean features of these very images, so that accuracies are far from chance."""
    features = torch.nn.Sequential(*list(network.children())[:-1])(images).flatten(1)
    features = torch.nn.functional.normalize(features)
    means = torch.stack([features[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    halves = [network.fc.fc1, network.fc.fc2] if hasattr(network.fc, "fc1") else [network.fc]
    for half, weight in zip(halves, means.split([len(half.weight) for half in halves]), strict=True):
        half.weight.copy_(weight)


def test_an_authors_folder_by_its_name(theirs, tmp_path, evaluated):
    folder, expected = theirs
    found, text = evaluated(folder), (tmp_path / "out" / "evaluation.md").read_text()
    assert cnn(found) == expected
    assert authors_modules() == []
    assert (found["class_order"], found["network"]) == (list(class_order(100, 1993)), "resnet20")
    assert [set(p["accuracy"]) for p in found["phases"]] == [{"cnn"}] * 3
    assert [p["weight_transfer"] for p in found["phases"]] == [False, True, True]
    assert "NME: not measured in phases 0" in text
    assert "class order: made from seed 1993" in text
    assert found["summary"]["forgetting"]["cnn"] == pytest.approx(expected[0][1] - expected[2][1], abs=0.005)


def test_flags_override_the_name_and_a_stored_order_counts(theirs, tmp_path, evaluated):
    (tmp_path / "cifar100_nfg50_ncls10_nproto20_exp01").mkdir()
    path = Path(shutil.copy(theirs[0] / MODEL.format(8), tmp_path / "cifar100_nfg50_ncls10_nproto20_exp01"))
    order, flags = path.with_name("seed_1993_cifar100_order_run_0.pkl"), (path, "--nb_cl_fg", 80)
    order.write_bytes(pickle.dumps(np.array(class_order(100, 7)), 4))
    found = evaluated(*flags)
    assert found["class_order"] == list(class_order(100, 7))
    assert cnn(found) != {1: theirs[1][1]}
    assert f"class order: read from {order.name}" in found["notices"]
    assert cnn(evaluated(*flags, "--order_seed", 1993)) == {1: theirs[1][1]}
    order.write_bytes(pickle.dumps(np.arange(10), 4))
    assert "class order has 10 classes, cifar100 has 100" in evaluated(*flags, status=2)
    (tmp_path / NAME).mkdir()
    later = Path(shutil.copy(path, tmp_path / NAME / "run_1_iteration_8_model.pth"))
    assert evaluated(later)["class_order"] == list(class_order(100, 1993, run=1))
    shutil.copy(order, order.with_name("seed_7_cifar100_order_run_0.pkl"))
    assert "several class orders" in evaluated(*flags, status=2)


def test_authors_files_that_are_missing_or_do_not_fit(theirs, tmp_path, evaluated):
    folder, (first, second, third) = shutil.copytree(theirs[0], tmp_path / NAME), map(MODEL.format, (7, 8, 9))
    for flags, message in (
        (("--nb_cl", 20), f"{first}: would be of phase 4, which there is not"),
        (("--nb_cl", 3), "--nb_cl 3: must divide the 80 classes of phase 0"),
    ):
        assert message in evaluated(folder, *flags, status=2)
    shutil.copy(folder / first, folder / "run_1_iteration_9_model.pth")
    (folder / second).unlink()
    assert "no checkpoint of phase 1;" in evaluated(folder, status=2)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert cnn(found) == {k: v for k, v in theirs[1].items() if k != 1}
    assert any("run 1 is there too and was left out" in line for line in found["notices"])
    shutil.copy(folder / third, folder / first)
    assert f"{first}: a network for 100 classes, after phase 0 there are 80" in evaluated(folder, status=2)
    with stand_ins():  # the authors' pooling is made for one size of images
        save(make("resnet_cifar", 3, 8), folder / first, True)
    flags = ("--dataset", "digits", "--nb_cl_fg", 8, "--nb_cl", 1)
    message = f"--dataset digits: images of 16x16 pixels, {folder / first} needs 32x32"
    assert message in evaluated(folder / first, *flags, status=2)
    assert "say --dataset --nb_cl_fg --nb_cl" in evaluated(folder.rename(tmp_path / "models"), status=2)
    assert "holds no phase_<i>.pt; name a run folder (eval/" in evaluated(tmp_path, status=2)
    assert "nothing: no such file or folder" in evaluated(tmp_path / "nothing", status=2)


STAMP = ROOT / ".venv" / "requirements.installed"
INSTALLED = (ROOT / "requirements.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()


@pytest.mark.skipif(
    not STAMP.is_file() or STAMP.read_bytes() != INSTALLED, reason="the scripts would first install the packages"
)
def test_the_scripts_download_and_evaluate(theirs, cifar100_mini, tmp_path):
    archive = tmp_path / "logs.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(theirs[0], f"logs/{NAME}")
    places = {"CHECKPOINTS_DIR": tmp_path / "a", "RESULTS_DIR": tmp_path / "results", "CIFAR100_DIR": cifar100_mini}
    variables = os.environ | {k: str(v) for k, v in places.items()} | {"CHECKPOINTS_URL": archive.as_uri()}
    command = ["bash", ROOT / "eval" / "run_eval.sh", "cifar100"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=variables)
    assert (process.returncode, process.stderr) == (0, "")
    assert cnn(json.loads((tmp_path / "results" / NAME / "evaluation.json").read_text())) == theirs[1]
