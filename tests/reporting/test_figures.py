"""Curves, on results made by hand."""

import os

import numpy as np
import pytest
from pictures import BLUE, GREEN, ORANGE, count, pixels

from mnemonics.reporting.figures import plot_accuracy


def test_plot_of_one_run_shows_both_classifiers_and_the_headline_solid(results, tmp_path):
    for headline, thick, thin in (("cnn", BLUE, ORANGE), ("nme", ORANGE, BLUE)):
        results["headline"] = headline
        plot_accuracy([("run", results)], tmp_path / "a.png")
        picture = pixels(tmp_path / "a.png")
        assert count(picture, thick) > count(picture, thin) > 100  # a dashed line covers fewer pixels
        assert count(picture, GREEN) == 0


def test_plot_of_several_runs_shows_one_curve_each(results, other, tmp_path):
    plot_accuracy([("a", results), ("b", results), ("c", other)], tmp_path / "a.png")
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
    plot_accuracy([("a", results), ("b", flat)], tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")[:300]  # without the legend
    heights = [np.ptp(np.nonzero((picture == colour).all(axis=2))[0]) for colour in (BLUE, ORANGE)]
    assert heights[0] > 200
    assert 0 < heights[1] < 20  # no more than a marker


@pytest.mark.parametrize(("first", "last", "left_is_higher"), [(90.0, 30.0, True), (30.0, 90.0, False)])
def test_plot_puts_higher_accuracy_higher_and_later_phases_to_the_right(results, tmp_path, first, last, left_is_higher):
    for phase, value in zip(results["phases"], (first, last), strict=True):
        phase["accuracy"] = {"nme": value}
    plot_accuracy([("run", results)], tmp_path / "a.png")
    rows, columns = np.nonzero((pixels(tmp_path / "a.png")[:300] == BLUE).all(axis=2))  # without the legend
    assert (rows[columns.argmin()] < rows[columns.argmax()]) == left_is_higher
    assert abs(rows[columns.argmin()] - rows[columns.argmax()]) > 200


def test_plot_takes_any_name_and_clips_nothing(results, tmp_path):
    names = ["_hidden", "$\\nonsense$", "cifar100_5phases_" * 12, "W" * 80]
    plot_accuracy([(name, results) for name in names], tmp_path / "a.png")
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
        plot_accuracy([(name, results)], tmp_path / "b.png")
        assert (pixels(tmp_path / "b.png")[:, [0, 1, -2, -1]] == 255).all()


def test_a_failed_write_leaves_the_old_picture_and_no_other_file(results, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    plot_accuracy([("run", results)], path)
    before = path.read_bytes()
    results["headline"] = "cnn"

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            plot_accuracy([("run", results)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    plot_accuracy([("run", results)], path)
    assert path.read_bytes() != before
