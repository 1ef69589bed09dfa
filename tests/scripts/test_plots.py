"""scripts/plot_curves.py and scripts/plot_tsne.py, on results made by hand and on tiny real runs on digits."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reports import BLUE, GREEN, GREY, ORANGE, PLAIN, count, make_results, pixels, tiny_run, written

from mnemonics.engine import files
from mnemonics.engine.errors import UsageError
from mnemonics.models.layers import BiasCorrected, CosineLinear
from scripts import plot_curves as curves
from scripts import plot_tsne as tsne


def test_a_curve_for_each_setting_and_a_panel_for_each_data_set(tmp_path, capsys):
    made = [make_results(1), make_results(2, 64.0), make_results(**PLAIN), make_results(average=70.0, baseline="joint")]
    made += [make_results(dataset="digits"), make_results(dataset="digits", finished=2, epochs=3)]
    for i, results in enumerate(made):
        written(tmp_path / "runs" / f"{i}.json", results)
    for paper in (False, True):
        arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "c"), *(["--paper"] if paper else [])]
        assert curves.main(arguments) == 0
        picture = pixels(tmp_path / "c.png")
        left, right = picture[:, :750], picture[:, 750:]
        assert right.shape[1] == 750
        assert min(count(left, BLUE), count(left, ORANGE), count(right, BLUE)) > 200
        assert count(picture, GREEN) == count(right, ORANGE) == 0  # the third curve is the upper bound, in black
        assert count(left, 0.8 * 255 + 0.2 * np.array(BLUE), near=1) > 500  # the interval
        assert (count(left, GREY) > 300) is paper
        assert count(right, GREY) == 0
    said = capsys.readouterr().out
    assert f"left out: {tmp_path}/runs/5.json: unfinished, 2 of 6 phases\n{tmp_path}/c.png, {tmp_path}/c.pdf: " in said
    pdf = (tmp_path / "c.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"CreationDate" not in pdf


def test_mean_and_interval_over_seeds_by_hand():
    curve = curves.curve_of([make_results(1, 60.0), make_results(2, 63.0)], "name")
    assert curve.y == pytest.approx([61.5 - i for i in range(6)])
    assert curve.half == pytest.approx([12.7062 * 1.5] * 6, abs=1e-3)  # Student's t for two: 12.7062
    assert list(curve.x) == [50, 60, 70, 80, 90, 100]
    assert curve.label == "name: CNN, average 61.50 +- 19.06% (n = 2)"
    alone = curves.curve_of([make_results()], "name")
    assert (alone.half, alone.label) == (None, "name: CNN, average 60.00% (n = 1)")


def test_curves_are_called_by_what_they_differ_in():
    assert curves.names_of([[make_results()]]) == ["lucir, mnemonics exemplars"]
    epochs = curves.names_of([[make_results(epochs=1)], [make_results(epochs=7)]])
    assert epochs == [f"lucir, mnemonics exemplars; epochs {n}" for n in (1, 7)]
    assert curves.names_of([[make_results()], [make_results(baseline="joint")]]) == [
        "lucir, mnemonics exemplars; weight_transfer True; finetune_epochs 50; adjusted True",
        "joint (upper bound); weight_transfer False; finetune_epochs 0; adjusted False",
    ]


def test_runs_of_other_data_or_phases_have_a_panel_of_their_own():
    a, b = ({"class_names": [], "fingerprint": f"{k}" * 16} for k in "ab")
    same = make_results() | {"data": a}
    unequal = make_results() | {"data": a}
    unequal["config"] = unequal["config"] | {"nb_cl": "20,10,10,5,5"}
    groups = [[same], [make_results(baseline="icarl") | {"data": a}], [make_results() | {"data": b}], [unequal]]
    panels = curves.panels_of(groups)
    assert [len(group) for group in panels.values()] == [2, 1, 1]
    first, other, odd = panels
    assert ("aaaaaaaa" in first, "bbbbbbbb" in other, "(20,10,10,5,5)" in odd) == (True, True, True)
    assert "aaaa" not in next(iter(curves.panels_of(groups[:2])))


def test_tsne_takes_runs_of_the_same_classes_by_their_names(monkeypatch):
    names = {"one": ["ape", "bee"], "two": ["cow", "dog"]}
    config, phase = SimpleNamespace(dataset="folder"), SimpleNamespace(seen=2, index=0)
    monkeypatch.setattr(
        tsne, "own_target", lambda path, _: SimpleNamespace(path=path, files={0: ""}, config=config, order=(0, 1))
    )
    protocol = SimpleNamespace(phases=[phase])
    monkeypatch.setattr(
        tsne, "scenario_of", lambda target: SimpleNamespace(names_of_labels=names[target.path], protocol=protocol)
    )
    assert len(tsne.opened(SimpleNamespace(runs=["one", "one"], phases=None, classes=2))) == 2
    with pytest.raises(UsageError, match="two: other classes, or in another order, than one"):
        tsne.opened(SimpleNamespace(runs=["one", "two"], phases=None, classes=2))


def test_plot_curves_tells_a_mistake_in_one_line(tmp_path, told):
    good, half = (written(tmp_path / f"{n}.json", make_results(finished=n)) for n in (6, 2))
    error = told(curves.main, half, "--out", tmp_path / "d")
    assert error.startswith(f"plot_curves.py: no finished run: {half}: unfinished, 2 of 6 phases")
    error = told(curves.main, good, "--out", tmp_path / "no" / "c")
    assert error.startswith(f"plot_curves.py: --out {tmp_path}/no/c: cannot be written (No such file or directory)")
    assert not (tmp_path / "d.png").exists()


def test_tsne_of_two_runs_in_two_phases(tmp_path, capsys):
    runs, out = [tiny_run("herding"), tiny_run("mnemonics")], tmp_path / "tsne.png"
    capsys.readouterr()
    arguments = [*runs, "--phases", 0, 5, "--classes", 3, "--images_per_class", 20, "--out", out, "--device", "cpu"]
    assert tsne.main(list(map(str, arguments))) == 0
    picture = pixels(out)
    assert picture.shape == (850, 800, 3)
    for panel in (picture[y : y + 340, x : x + 340] for y in (30, 430) for x in (30, 430)):
        for colour in (BLUE, ORANGE, GREEN):
            assert count(panel, colour) > 20  # deep: exemplars
            assert count(panel, 0.7 * 255 + 0.3 * np.array(colour), near=2) > 50  # light: images
        assert count(panel, GREY) > 5  # other classes
    rows, said = json.loads(out.with_suffix(".json").read_text()), capsys.readouterr().out
    assert [(r["run"], r["phase"]) for r in rows] == [(run.name, phase) for phase in (0, 5) for run in runs]
    for r in rows:
        assert (r["images"], r["exemplars"]) == (60, 6)
        assert r["ratio"] == pytest.approx(r["margin_of_exemplars"] / r["margin_of_images"])
        assert re.search(rf"\| {r['margin_of_images']:.4f} +\| {r['margin_of_images_ci95']:.4f} +\|", said)
    assert len({r["margin_of_exemplars"] for r in rows}) == 4


def test_what_is_measured_are_the_images_and_exemplars_of_the_first_classes():
    run = tiny_run("herding")
    options = tsne.parse_args([str(run), "--phases", "3", "--classes", "4", "--images_per_class", "9"])
    ((target, experiment),) = tsne.opened(options)
    found, others = tsne.measure((target, experiment), 3, options)
    (features, labels, _), (_, image_labels, _) = found["exemplars"], found["images"]
    assert torch.bincount(image_labels).tolist() == [9] * 4
    assert torch.bincount(labels).tolist() == [2] * 4
    assert len(others) == 8 - 4
    options.images_per_class = 10_000  # herding exemplars are training images: each has the features of one of them
    everything = tsne.measure((target, experiment), 3, options)[0]["images"][0]
    differences = (features[:, None] - everything[None]).abs().amax(dim=2)
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


def test_plot_tsne_tells_a_mistake_in_one_line(tmp_path, told):
    run, other, empty = tiny_run("herding"), tmp_path / "other", tmp_path / "empty"
    stored = torch.load(run / "phase_0.pt", weights_only=True)
    nothing = {key: value[:0] for key, value in stored["exemplars"].items()}
    for folder, change in ((other, {"class_order": list(range(10))}), (empty, {"exemplars": nothing})):
        folder.mkdir()
        files.save(folder / "phase_0.pt", stored | change)
    for arguments, words in (
        ([run, "--classes", 9], "--classes 9: must be 2 to 8"),
        ([run, "--classes", 6], "--classes 6: after phase 0 there are only 5"),
        ([run, "--phases", 0, 7], "--phases 7: "),
        ([run, "--out", "tsne.gif"], "--out tsne.gif: must end in .png or .pdf"),
        ([run, other, "--phases", 0], f"{other}: other classes, or in another order, than"),
        ([empty], f"{empty}/phase_0.pt: holds no exemplars"),
    ):
        assert told(tsne.main, *arguments, "--device", "cpu").startswith(f"plot_tsne.py: {words}")
