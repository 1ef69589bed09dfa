"""Tables, curves, exemplar grids and scripts/compare_runs.py, on results and images made by hand."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnemonics import report

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_runs.py"
CONFIG = {
    "dataset": "digits",
    "baseline": "icarl",
    "exemplars": "mnemonics",
    "nb_phases": 1,
    "nb_protos": 20,
    "total_memory": None,
    "random_seed": 7,
    "order_seed": 1993,
    "finetune_epochs": 50,
    "out": "here",
}
BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)  # the first colours of matplotlib's cycle


def make_phase(phase, seen, new, old, kept, accuracy, phase0, seconds):
    return {
        "phase": phase,
        "classes_seen": seen,
        "train_images": {"new": new, "old": old},
        "exemplars_per_class": {"min": kept[0], "max": kept[1]},
        "exemplar_bytes": 768 * seen * kept[0],
        "accuracy": accuracy,
        "phase0_accuracy": phase0,
        "seconds": seconds,
        "peak_memory_bytes": 1,
        "accuracy_by_phase_of_origin": {"cnn": [50.0] * (phase + 1), "nme": [50.0] * (phase + 1)},
    }


@pytest.fixture
def results():
    """Two phases with numbers that occur only once, so that a number in the wrong place cannot pass."""
    first = make_phase(
        0,
        5,
        718,
        0,
        (20, 20),
        {"cnn": 98.125, "nme": 97.2},
        {"cnn": 98.125, "nme": 97.2},
        {"train": 1.25, "exemplars": 2.5, "finetune": 0.0, "evaluate": 0.5},
    )
    last = make_phase(
        1,
        10,
        719,
        100,
        (18, 20),
        {"cnn": 81.5, "nme": 85.3, "cnn_before_finetune": 61.7, "nme_before_finetune": 64.9},
        {"cnn": 71.1, "nme": 90.9, "cnn_before_finetune": 1.0, "nme_before_finetune": 2.0},
        {"train": 10.0, "exemplars": 20.0, "finetune": 3.0, "evaluate": 0.25},
    )
    return {
        "config": dict(CONFIG),
        "environment": {},
        "class_order": [3, 1],
        "class_order_sha256": "ab",
        "headline": "nme",
        "phases": [first, last],
        "summary": {
            "average_accuracy": {"cnn": 89.81, "nme": 91.25},
            "last_accuracy": {"cnn": 81.5, "nme": 85.3},
            "forgetting": {"cnn": 27.03, "nme": 6.3},
        },
    }


@pytest.fixture
def other(results):
    """A baseline run whose headline is the CNN, with another budget and only phase 0 of 3 finished."""
    other = copy.deepcopy(results)
    other["config"] |= {
        "baseline": "lwf",
        "exemplars": "herding",
        "finetune_epochs": 0,
        "nb_protos": None,
        "total_memory": 2000,
        "nb_phases": 2,
        "out": "there",
    }
    other["headline"] = "cnn"
    other["phases"] = other["phases"][:1]
    other["summary"] = {
        "average_accuracy": {"cnn": 98.12, "nme": 97.2},
        "last_accuracy": {"cnn": 98.12, "nme": 97.2},
        "forgetting": {"cnn": 0.0, "nme": 0.0},
    }
    return other


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, colour) -> int:
    return int((picture == colour).all(axis=2).sum())


def solid(colours, side=8) -> torch.Tensor:
    """uint8 [n, 3, side, side]: one image of a single colour per entry of `colours`."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, side, side).contiguous()


# tables


def test_results_table_is_exactly_this(results):
    assert report.results_table(results).split("\n") == [
        "digits, icarl with mnemonics exemplars, training seed 7, class order seed 1993",
        "",
        "phase  classes  train images  exemplars/class  CNN %  NME* %  CNN before %  NME* before %"
        "  phase-0 classes NME* %  seconds",
        "    0        5       718 + 0               20  98.12   97.20             -              -"
        "                   97.20      4.2",
        "    1       10     719 + 100            18-20  81.50   85.30         61.70          64.90"
        "                   90.90     33.2",
        "",
        "average accuracy %  CNN 89.81  NME* 91.25",
        "last accuracy %     CNN 81.50  NME* 85.30",
        "forgetting, points  CNN 27.03   NME* 6.30",
        "",
        "train images = images of the new classes + of old ones (exemplars, unless the baseline is a bound)",
        "budget: 20 exemplars per class (--nb_protos)",
        "average accuracy = mean over all 2 phases, phase 0 included, of the accuracy on the test images of all "
        "classes seen so far",
        "forgetting = accuracy on the test images of the phase-0 classes of the first model minus that of the last; "
        "lower is better",
        'after fine-tuning on the exemplars; "before" = before it; n runs = 1; * = headline classifier',
    ]


def test_results_table_without_finetuning_with_total_memory_and_phases_missing(other):
    lines = report.results_table(other).split("\n")
    assert lines[2].split("  ")[-2:] == ["phase-0 classes CNN* %", "seconds"]
    assert lines[3].split() == ["0", "5", "718", "+", "0", "20", "98.12", "97.20", "98.12", "4.2"]
    assert "CNN* %  NME %" in lines[2]
    assert "before" not in "\n".join(lines)
    assert "budget: 2000 exemplars in total (--total_memory)" in lines
    assert any(line.startswith("average accuracy = mean over the 1 finished of 3 phases, phase 0") for line in lines)
    assert lines[-1] == "without fine-tuning on the exemplars; n runs = 1; * = headline classifier"


def test_results_table_shows_the_upper_bound_where_it_was_measured(results):
    assert "NCM" not in report.results_table(results)
    for phase, value in zip(results["phases"], (99.25, 95.75), strict=True):
        phase["accuracy"]["ncm"] = value
    results["summary"]["average_accuracy"]["ncm"] = 97.5
    lines = report.results_table(results).split("\n")
    assert "99.25" in lines[3]
    assert "95.75" in lines[4]
    assert lines[6].endswith("NCM 97.50")
    assert lines[-1] == "NCM reads all training data, which a learner would no longer have: an upper bound"


def test_comparison_table_is_exactly_this(results, other):
    assert report.comparison_table([("mine", results), ("lwf", other)]).split("\n") == [
        "run                  exemplars      classifier  phase 0  phase 1  average  forgetting",
        "mine                 20 per class   NME           97.20    85.30    91.25        6.30",
        "lwf (1 of 3 phases)  2000 in total  CNN           98.12             98.12        0.00",
        "",
        "accuracies in percent of the headline classifier; n = 1 run per row",
        report.AVERAGE.format(phases="all finished"),
        report.FORGETTING,
        "the runs differ in baseline: icarl | lwf",
        "the runs differ in exemplars: mnemonics | herding",
        "the runs differ in nb_phases: 1 | 2",
        "the runs differ in nb_protos: 20 | None",
        "the runs differ in total_memory: None | 2000",
        "the runs differ in finetune_epochs: 50 | 0",  # and not in --out, which changes no number
    ]


# curves


def test_plot_of_one_run_shows_both_classifiers_and_the_headline_solid(results, tmp_path):
    for headline, thick, thin in (("cnn", BLUE, ORANGE), ("nme", ORANGE, BLUE)):
        results["headline"] = headline
        report.plot_accuracy([("run", results)], tmp_path / "a.png")
        picture = pixels(tmp_path / "a.png")
        assert count(picture, thick) > count(picture, thin) > 100  # a dashed line covers fewer pixels
        assert count(picture, GREEN) == 0


def test_plot_of_several_runs_shows_one_curve_each(results, other, tmp_path):
    report.plot_accuracy([("a", results), ("b", results), ("c", other)], tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[1] == 750
    assert 400 < picture.shape[0] < 600
    assert count(picture, GREEN) > 20
    assert count(picture, ORANGE) > 300  # the second of two equal curves covers the first
    assert count(picture, BLUE) > 20  # which is still in the legend
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_plot_of_several_runs_takes_the_headline_of_each(results, tmp_path):
    for phase, value in zip(results["phases"], (90.0, 30.0), strict=True):
        phase["accuracy"] = {"cnn": 60.0, "nme": value}
    flat = results | {"headline": "cnn"}
    report.plot_accuracy([("a", results), ("b", flat)], tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")[:300]  # without the legend
    heights = [np.ptp(np.nonzero((picture == colour).all(axis=2))[0]) for colour in (BLUE, ORANGE)]
    assert heights[0] > 200
    assert 0 < heights[1] < 20  # no more than a marker


@pytest.mark.parametrize(("first", "last", "left_is_higher"), [(90.0, 30.0, True), (30.0, 90.0, False)])
def test_plot_puts_higher_accuracy_higher_and_later_phases_to_the_right(results, tmp_path, first, last, left_is_higher):
    for phase, value in zip(results["phases"], (first, last), strict=True):
        phase["accuracy"] = {"nme": value}
    report.plot_accuracy([("run", results)], tmp_path / "a.png")
    rows, columns = np.nonzero((pixels(tmp_path / "a.png")[:300] == BLUE).all(axis=2))  # without the legend
    assert (rows[columns.argmin()] < rows[columns.argmax()]) == left_is_higher
    assert abs(rows[columns.argmin()] - rows[columns.argmax()]) > 200


def test_plot_takes_any_name_and_clips_nothing(results, tmp_path):
    names = ["_hidden", "$\\nonsense$", "cifar100_5phases_" * 12, "W" * 80]
    report.plot_accuracy([(name, results) for name in names], tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert count(picture[300:], BLUE) > 20  # the legend has "_hidden" too
    border = np.concatenate(
        [
            picture[:2].reshape(-1, 3),
            picture[-2:].reshape(-1, 3),
            picture[:, :2].reshape(-1, 3),
            picture[:, -2:].reshape(-1, 3),
        ]
    )
    assert (border == 255).all()
    for name in names:  # as the title of a single run
        report.plot_accuracy([(name, results)], tmp_path / "b.png")
        assert (pixels(tmp_path / "b.png")[:, [0, 1, -2, -1]] == 255).all()


def test_a_failed_write_leaves_the_old_picture_and_no_other_file(results, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    report.plot_accuracy([("run", results)], path)
    before = path.read_bytes()
    results["headline"] = "cnn"

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report.plot_accuracy([("run", results)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    report.plot_accuracy([("run", results)], path)
    assert path.read_bytes() != before


# exemplars


def test_exemplar_panels_by_hand():
    before = torch.tensor([100, 100, 100, 250, 3, 0, 255], dtype=torch.uint8)
    after = torch.tensor([100, 103, 98, 255, 0, 255, 0], dtype=torch.uint8)
    difference = report.exemplar_panels(before, after, 5)
    assert difference.dtype == torch.uint8
    assert difference.tolist() == [128, 143, 118, 153, 113, 255, 0]  # the last two are clipped: 1403 and -1147
    assert report.exemplar_panels(before, after, 1).tolist() == [128, 131, 126, 133, 125, 255, 0]


def test_grid_shows_every_pixel_of_before_after_and_difference(tmp_path):
    before, after = solid([(10, 20, 30), (200, 0, 90)]), solid([(20, 20, 29), (200, 40, 90)])
    report.plot_exemplars(before, after, torch.tensor([0, 1]), ["zero", "one"], tmp_path / "e.png")
    picture = pixels(tmp_path / "e.png")
    columns = []
    for row in ([(10, 20, 30), (20, 20, 29), (178, 128, 123)], [(200, 0, 90), (200, 40, 90), (128, 255, 128)]):
        for colour in row:
            assert count(picture, colour) == 64 * 64, colour  # 8x8 pixels, each shown as 8x8
        columns.append([int(np.nonzero((picture == colour).all(axis=2))[1].min()) for colour in row])
    assert columns[0] == columns[1] == sorted(columns[0])  # before, after, difference from left to right
    top, bottom = (int(np.nonzero((picture == c).all(axis=2))[0].min()) for c in ((10, 20, 30), (200, 0, 90)))
    assert bottom >= top + 64


def test_grid_keeps_the_orientation_of_an_image(tmp_path):
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[0, :, 2, 5] = torch.tensor([255, 10, 10], dtype=torch.uint8)  # third row, sixth column
    report.plot_exemplars(image, image, torch.tensor([0]), ["a"], tmp_path / "e.png")
    picture = pixels(tmp_path / "e.png")
    ys, xs = np.nonzero((picture == (255, 10, 10)).all(axis=2))
    assert (np.ptp(ys), np.ptp(xs), len(ys)) == (3, 3, 16)  # one square of 4 by 4
    black_ys, black_xs = np.nonzero((picture[:, 30:] == 0).all(axis=2))  # right of the class name
    tile_left = black_xs[black_ys == ys.max()].min() + 30
    assert (ys.min() - report.TITLE_HEIGHT, xs.min() - tile_left) == (2 * 4, 5 * 4)


def test_equal_pairs_give_one_panel(tmp_path):
    before = solid([(10, 20, 30), (60, 70, 80)])
    after = before.clone()
    labels = torch.tensor([0, 0])
    report.plot_exemplars(before, after, labels, ["a"], tmp_path / "one.png")
    after[0, 0, 0, 0] += 1
    report.plot_exemplars(before, after, labels, ["a"], tmp_path / "three.png")
    below = slice(report.TITLE_HEIGHT, None)  # without the titles and names, whose edges hold every grey
    one, three = (pixels(tmp_path / name)[below, 32:] for name in ("one.png", "three.png"))
    assert one.shape[0] == three.shape[0]
    assert three.shape[1] > 2 * one.shape[1]
    assert (count(one, (60, 70, 80)), count(three, (60, 70, 80))) == (64 * 64, 2 * 64 * 64)
    assert (count(one, (128, 128, 128)), count(three, (128, 128, 128))) == (0, 2 * 64 * 64 - 8 * 8)


def test_rows_are_evenly_spaced_classes_and_their_first_exemplars():
    labels = torch.arange(21).repeat(4).flip(0)  # 20, 19, ..., 0, four times
    rows = report.rows_of_classes(labels, max_classes=3, per_class=2)
    assert {label: indices.tolist() for label, indices in rows.items()} == {0: [20, 41], 10: [10, 31], 20: [0, 21]}
    some = report.rows_of_classes(torch.tensor([7, 3, 7, 7]), max_classes=10, per_class=5)
    assert [(label, indices.tolist()) for label, indices in some.items()] == [(3, [1]), (7, [0, 2, 3])]


def test_grid_draws_the_chosen_rows_only(tmp_path):
    colours = [(10 * i, 255 - 10 * i, 5) for i in range(21)]
    images = solid(colours).repeat_interleave(3, 0)
    report.plot_exemplars(
        images,
        images,
        torch.arange(21).repeat_interleave(3),
        [str(i) for i in range(21)],
        tmp_path / "e.png",
        max_classes=3,
        per_class=2,
    )
    picture = pixels(tmp_path / "e.png")
    shown = {i: count(picture, colour) for i, colour in enumerate(colours) if count(picture, colour)}
    assert shown == dict.fromkeys((0, 10, 20), 2 * 64 * 64)


def test_white_images_have_a_frame(tmp_path):
    report.plot_exemplars(
        solid([(255, 255, 255)]), solid([(255, 255, 255)]), torch.tensor([0]), ["."], tmp_path / "e.png"
    )
    assert count(pixels(tmp_path / "e.png")[report.TITLE_HEIGHT - 1 :], (190, 190, 190)) == 66 * 66 - 64 * 64


def test_class_names_and_titles_have_room(tmp_path):
    before, after = solid([(250, 0, 0), (0, 250, 0)]), solid([(251, 0, 0), (0, 251, 0)])
    widths = []
    for name in ("a", "a $\\very$ long _name_ of a class"):
        names = ["unused, so its length has no effect at all", "b", name]
        report.plot_exemplars(before, after, torch.tensor([1, 2]), names, tmp_path / "e.png", per_class=1)
        picture = pixels(tmp_path / "e.png")
        widths.append(picture.shape[1])
        ys, xs = np.nonzero((picture == (0, 250, 0)).all(axis=2))
        label = picture[ys.min() : ys.max(), : xs.min() - 1]
        assert (label.max(axis=2) < 80).sum() > 10  # dark: the name stands at the left of its row
        assert (label[:, -6:] == 255).all()  # and does not touch the image
        ink = np.nonzero((picture[: report.TITLE_HEIGHT - 1] < 128).any(axis=(0, 2)))[0]
        assert (np.diff(ink) > 20).sum() == 2  # three titles, clear of each other
        border = (picture[[0, -1]] == 255).all() and (picture[:, :8] == 255).all() and (picture[:, -8:] == 255).all()
        assert border
    assert widths[1] > widths[0] + 100


def test_large_images_are_thinned_out(tmp_path):
    images = torch.arange(224, dtype=torch.uint8).expand(1, 3, 200, 224).contiguous()
    assert report.screen_tiles(images).shape == (1, 100, 112, 3)
    assert report.screen_tiles(images)[0, 0, :, 0].tolist() == list(range(0, 224, 2))
    report.plot_exemplars(images, images, torch.tensor([0]), ["a"], tmp_path / "e.png")
    assert pixels(tmp_path / "e.png").shape[0] == report.TITLE_HEIGHT + 100 + report.MARGIN


def test_a_full_grid_of_noisy_images_shows_exact_colours(tmp_path):
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"class {i}" for i in range(10)]
    report.plot_exemplars(images, images.flip(0), torch.arange(10).repeat_interleave(5), names, tmp_path / "e.png")
    picture = pixels(tmp_path / "e.png")
    left = report.text_width(names, 10) + 2 * report.MARGIN
    shown = picture[report.TITLE_HEIGHT :, left:][:64:2, :64:2]
    assert np.array_equal(shown, images[0].permute(1, 2, 0).numpy())


# scripts/compare_runs.py


@pytest.fixture
def compare():
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, content) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_compare_runs_from_any_folder(results, other, tmp_path):
    runs = [write_run(tmp_path / "runs" / "mine", results), write_run(tmp_path / "runs" / "theirs", other)]
    for name in ("exemplars_phase_10.png", "exemplars_phase_2.png", "accuracy.png", "unrelated.png"):
        (runs[0] / name).touch()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "runs/mine", "runs/theirs"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    table, _, listed = done.stdout.partition("\npictures:\n")
    assert table.rstrip("\n") == report.comparison_table([("mine", results), ("theirs", other)])
    assert [Path(line.strip()) for line in listed.splitlines()] == [
        Path("runs/mine/exemplars_phase_2.png"),
        Path("runs/mine/exemplars_phase_10.png"),
        Path("runs/mine/accuracy.png"),
        Path("accuracy_comparison.png"),
    ]
    assert count(pixels(tmp_path / "accuracy_comparison.png"), BLUE) > 100


def test_compare_runs_tells_equal_folder_names_apart(compare, results, tmp_path, capsys):
    runs = [str(write_run(tmp_path / parent / "run", results)) for parent in ("a", "b")]
    assert compare.main([*runs, "--out", str(tmp_path / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == runs


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "not the results of a run"),
        ('{"phases": [{}]}', "not the results of a run"),
        ('{"phases": []}', "no phase is finished yet"),
    ],
)
def test_compare_runs_names_the_file_it_cannot_use(compare, results, tmp_path, capsys, content, reason):
    good, bad = write_run(tmp_path / "good", results), tmp_path / "bad"
    if content is not None:
        write_run(bad, content)
    assert compare.main([str(good), str(bad), "--out", str(tmp_path / "c.png")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"{bad / 'results.json'}: {reason}")
    assert not (tmp_path / "c.png").exists()


def test_compare_runs_reports_a_plot_it_cannot_write(compare, results, tmp_path, capsys):
    out = tmp_path / "missing" / "c.png"
    assert compare.main([str(write_run(tmp_path / "run", results)), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"--out {out}: cannot be written (No such file or directory)\n"
