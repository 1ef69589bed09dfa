"""scripts/plot_curves.py and scripts/plot_tsne.py on real, tiny runs on digits."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import BLUE, GREEN, ORANGE, count, pixels

from mnemonics import algorithm as experiment
from mnemonics.engine import files as checkpoint
from mnemonics.experiment.state import parse_args
from mnemonics.models.layers import BiasCorrected, CosineLinear
from mnemonics.reporting.read import read_results

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--dataset digits --max_images_per_class 40 --nb_phases 5 --network resnet8 --epochs 1 --nb_protos 2 "
        "--mnemonics_val_batch_size 64 "
        "--mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1 --device cpu").split()  # fmt: skip
CIFAR = ROOT / "results" / "cifar100_cpu" / "lucir_epochs6.json"
GREY = (154, 161, 169)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


curves, tsne = script("plot_curves"), script("plot_tsne")


def run(folder, *arguments):
    experiment.run(parse_args([*TINY, "--out", str(folder), *arguments]))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each kind of exemplars."""
    folder = tmp_path_factory.mktemp("runs")
    return [run(folder / name, "--exemplars", name) for name in ("random", "herding", "mnemonics")]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "joint", "--baseline", "joint", "--exemplars", "random",
               "--finetune_epochs", "0")  # fmt: skip


def another_seed(folder, out, points):
    """A copy of a finished run as another seed would have made it, `points` better in every phase."""
    shutil.copytree(folder, out)
    results = load(out)
    results["config"]["random_seed"] += 1
    for phase in results["phases"]:
        phase["accuracy"]["cnn"] += points
    (out / "results.json").write_text(json.dumps(results))
    return out


def load(folder):
    return read_results(folder / "results.json")


# curves


def test_curves_of_two_settings_and_the_upper_bound(runs, joint, tmp_path, capsys):
    second = another_seed(runs[0], tmp_path / "second", 0.25)
    assert curves.main([*map(str, (*runs[:2], second, joint)), "--out", str(tmp_path / "curves")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/curves.png, {tmp_path}/curves.pdf")
    picture = pixels(tmp_path / "curves.png")
    assert picture.shape == (520, 750, 3)  # one panel, three curves
    assert min(count(picture, BLUE), count(picture, ORANGE)) > 300
    assert count(picture, GREEN) == 0  # the third curve is the upper bound, in black
    shade = np.round(0.8 * np.array([255, 255, 255]) + 0.2 * np.array(BLUE)).astype(int)
    assert (np.abs(picture.astype(int) - shade).max(axis=2) <= 1).sum() > 500
    pdf = (tmp_path / "curves.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 5000
    assert b"CreationDate" not in pdf


def test_mean_and_interval_over_seeds_by_hand(runs, tmp_path):
    first, second = load(runs[0]), load(another_seed(runs[0], tmp_path / "second", 3.0))
    second["summary"]["average_accuracy"]["cnn"] = first["summary"]["average_accuracy"]["cnn"] + 3
    curve = curves.curve_of([first, second], "name", 2)
    accuracies = [phase["accuracy"]["cnn"] for phase in first["phases"]]
    assert curve.y == pytest.approx([value + 1.5 for value in accuracies])
    assert curve.half == pytest.approx([12.7062 * 1.5] * 6, abs=1e-3)  # Student's t for two: 12.7062
    assert list(curve.x) == [5, 6, 7, 8, 9, 10]
    average = first["summary"]["average_accuracy"]["cnn"] + 1.5
    assert curve.label == f"name: CNN, average {average:.2f} ± 19.06% (n = 2)"
    alone = curves.curve_of([first], "name", 2)
    assert alone.half is None
    assert alone.label.endswith("(n = 1)")


def test_curves_are_called_by_what_they_differ_in(runs, joint):
    other = load(runs[2])
    other["config"]["epochs"] = 7
    groups = [[load(runs[1])], [load(runs[2])], [other], [load(joint)]]
    assert curves.names_of(groups[1::2]) == [
        "lucir, mnemonics exemplars; weight_transfer True; finetune_epochs 1",
        "joint (upper bound); weight_transfer False; finetune_epochs 0",
    ]
    assert curves.names_of(groups[1:3]) == [
        "lucir, mnemonics exemplars; epochs 1",
        "lucir, mnemonics exemplars; epochs 7",
    ]
    other["config"] |= {"epochs": 1, "adjust_always": True}
    assert curves.names_of(groups[1:3]) == [
        "lucir, mnemonics exemplars; adjusted False",
        "lucir, mnemonics exemplars; adjusted True",
    ]
    assert curves.names_of(groups[1:2]) == ["lucir, mnemonics exemplars"]


def test_other_data_have_a_panel_of_their_own_and_the_paper_its_curve(runs, tmp_path):
    for paper in (False, True):
        arguments = [str(runs[0]), str(CIFAR), "--out", str(tmp_path / "c"), *(["--paper"] if paper else [])]
        assert curves.main(arguments) == 0
        picture = pixels(tmp_path / "c.png")
        assert picture.shape[1] == 2 * 750
        left, right = picture[:, :750], picture[:, 750:]
        assert min(count(left, BLUE), count(right, BLUE)) > 300
        assert count(left, GREY) == 0
        assert (count(right, GREY) > 300) is paper


def test_unfinished_runs_are_left_out_and_said_so(runs, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(runs[0], half)
    results = load(half)
    results["phases"] = results["phases"][:2]
    (half / "results.json").write_text(json.dumps(results))
    assert curves.main([str(half), str(runs[1]), "--out", str(tmp_path / "c")]) == 0
    assert f"left out: {half / 'results.json'}: unfinished" in capsys.readouterr().out
    assert curves.main([str(half), "--out", str(tmp_path / "d")]) == 2
    assert capsys.readouterr().err == f"plot_curves.py: no finished run: {half / 'results.json'}: unfinished\n"
    assert not (tmp_path / "d.png").exists()


def test_plot_curves_tells_a_mistake_in_one_line(runs, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        ([empty], f"{empty}: holds no results of a run"),
        ([tmp_path / "nothing"], "nothing/results.json: cannot be read"),
        ([runs[0], "--out", tmp_path / "no" / "c"], "cannot be written (No such file or directory)"),
    ):
        assert curves.main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert error.startswith("plot_curves.py: ")
        assert words in error
        assert error.count("\n") == 1


# t-SNE


def test_tsne_of_three_runs_in_two_phases(runs, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "plot_tsne.py", *runs, "--phases", "0", "5", "--classes", "3",
               "--images_per_class", "20", "--out", tmp_path / "tsne.png", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    picture = pixels(tmp_path / "tsne.png")
    assert picture.shape == (850, 1200, 3)
    for row in range(2):
        for column in range(3):
            panel = picture[row * 400 + 30 : row * 400 + 370, column * 400 + 30 : column * 400 + 370]
            for colour in (BLUE, ORANGE, GREEN):
                assert count(panel, colour) > 20, (row, column)  # deep: exemplars
                pale = np.round(0.7 * 255 + 0.3 * np.array(colour)).astype(int)
                assert (np.abs(panel.astype(int) - pale).max(axis=2) <= 2).sum() > 50  # light: images
            assert count(panel, GREY) > 5  # other classes
    rows = json.loads((tmp_path / "tsne.json").read_text())
    assert [(r["run"], r["phase"]) for r in rows] == [(run.name, phase) for phase in (0, 5) for run in runs]
    for r in rows:
        assert (r["images"], r["exemplars"]) == (60, 6)
        assert r["ratio"] == pytest.approx(r["margin_of_exemplars"] / r["margin_of_images"])
        assert r["classes"] == [str(c) for c in load(runs[0])["class_order"][:3]]
        assert f"| {r['margin_of_images']:.4f} +- {r['margin_of_images_ci95']:.4f} |" in done.stdout
    assert len({r["margin_of_exemplars"] for r in rows}) == 6


def options(*arguments):
    return tsne.parse_args([*map(str, arguments), "--device", "cpu"])


def test_what_is_measured_are_the_images_and_exemplars_of_the_first_classes(runs):
    ((target, exp),) = tsne.opened(options(runs[1], "--phases", 3, "--classes", 4))
    found = tsne.measure(target, exp, 3, classes=4, images_per_class=9)
    assert torch.bincount(found.data_labels).tolist() == [9] * 4
    assert torch.bincount(found.exemplar_labels).tolist() == [2] * 4
    assert len(found.others) == 8 - 4
    stored = torch.load(runs[1] / "phase_3.pt", weights_only=True)
    weight = torch.cat([stored["model"][f"classifier.{age}_weight"] for age in ("old", "new")])
    cosines = torch.nn.functional.normalize(found.exemplars) @ torch.nn.functional.normalize(weight).T
    best = cosines.sort(dim=1, descending=True).values
    assert torch.allclose(found.exemplar_margins, best[:, 0] - best[:, 1], atol=1e-5)
    # herding exemplars are training images: each has the features of one of them
    everything = tsne.measure(target, exp, 3, classes=4, images_per_class=10_000)
    differences = (everything.exemplars[:, None] - everything.data[None]).abs().amax(dim=2)
    assert differences.min(dim=1).values.max() < 1e-5


def test_margins_by_hand():
    classifier = CosineLinear(2, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
        classifier.sigma.fill_(5.0)
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert torch.allclose(tsne.margins_of(classifier, features), torch.tensor([0.2, 1.0]))
    corrected = BiasCorrected(classifier)
    corrected.scale[1], corrected.shift[1] = 0.5, 1.0  # 0.8 * 5 becomes 3, 0.6 * 5 stays 3
    assert torch.allclose(tsne.margins_of(corrected, features), torch.tensor([0.0, 0.8]), atol=1e-6)


def test_tsne_keeps_neighbours_together_and_repeats():
    draws = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(20, 0)
    data = centres + 0.05 * torch.randn(60, 3, generator=draws)
    labels, nothing = torch.arange(3).repeat_interleave(20), torch.zeros(0)
    found = tsne.Measured(data, labels, nothing, data[::20], labels[::20], nothing, -torch.eye(3)[:1], [])
    images, exemplars, others = tsne.embedded(found, 0)
    assert [len(part) for part in (images, exemplars, others)] == [60, 3, 1]
    distance = np.linalg.norm(images[:, None] - exemplars[None], axis=2)
    assert distance.argmin(axis=1).tolist() == labels.tolist()
    assert np.array_equal(images, tsne.embedded(found, 0)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--classes", "9"], "--classes 9: must be 2 to 8"),
        (["{run}", "--classes", "6"], "--classes 6: after phase 0 there are only 5"),
        (["{run}", "--phases", "0", "7"], "--phases 7: "),
        (["{run}", "--images_per_class", "0"], "--images_per_class 0: must be at least 1"),
        (["{run}", "--out", "tsne.gif"], "--out tsne.gif: must end in .png or .pdf"),
        (["{tmp}"], "holds no phase_<i>.pt"),
        (["{run}", "{other}"], "other classes, or in another order, than"),
        (["{finetune}", "--phases", "0"], "holds no exemplars"),
    ],
)
def test_plot_tsne_tells_a_mistake_in_one_line(runs, tmp_path, capsys, arguments, words):
    other = tmp_path / "other"
    for name, change in (("other", {"class_order": list(range(10))}), ("finetune", {})):
        (tmp_path / name).mkdir()
        stored = torch.load(runs[1] / "phase_0.pt", weights_only=True)
        if name == "finetune":
            stored["exemplars"] = {key: value[:0] for key, value in stored["exemplars"].items()}
        checkpoint.save(tmp_path / name / "phase_0.pt", stored | change)
    names = {"run": runs[1], "tmp": tmp_path, "other": other, "finetune": tmp_path / "finetune"}
    arguments = [argument.format(**names) for argument in arguments]
    phases = [] if "--phases" in arguments else ["--phases", "0"]
    assert tsne.main([*arguments, *phases, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plot_tsne.py: ")
    assert words in error
    assert error.count("\n") == 1
