"""Curves, on results made by hand."""

import numpy as np
import pytest
from pictures import BLUE, GREEN, ORANGE, count, pixels

from mnemonics.reporting.figures import plot_accuracy


def plotted(tmp_path, *runs):
    plot_accuracy(list(runs), tmp_path / "a.png")
    return pixels(tmp_path / "a.png")


@pytest.mark.parametrize(("headline", "thick", "thin"), [("cnn", BLUE, ORANGE), ("nme", ORANGE, BLUE)])
def test_plot_of_one_run_shows_both_classifiers_and_the_headline_solid(results, tmp_path, headline, thick, thin):
    picture = plotted(tmp_path, ("run", results | {"headline": headline}))
    assert count(picture, thick) > count(picture, thin) > 100  # a dashed line covers fewer pixels
    assert count(picture, GREEN) == 0


def test_plot_of_several_runs_shows_the_headline_of_each(results, other, tmp_path):
    for phase, value in zip(results["phases"], (90.0, 30.0), strict=True):
        phase["accuracy"] = {"cnn": 60.0, "nme": value}
    picture = plotted(tmp_path, ("a", results), ("b", results | {"headline": "cnn"}), ("c", other))
    assert picture.shape[1] == 750
    assert count(picture, GREEN) > 20
    heights = [np.ptp(np.nonzero((picture[:300] == colour).all(axis=2))[0]) for colour in (BLUE, ORANGE)]
    assert heights[0] > 150
    assert 0 < heights[1] < 20  # no more than a marker
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("first", "last"), [(90.0, 30.0), (30.0, 90.0)])
def test_plot_puts_higher_accuracy_higher_and_later_phases_to_the_right(results, tmp_path, first, last):
    for phase, value in zip(results["phases"], (first, last), strict=True):
        phase["accuracy"] = {"nme": value}
    rows, columns = np.nonzero((plotted(tmp_path, ("run", results))[:300] == BLUE).all(axis=2))  # without the legend
    left, right = int(rows[columns.argmin()]), int(rows[columns.argmax()])
    assert (left < right) == (first > last)
    assert abs(left - right) > 200


def test_plot_takes_any_name_and_clips_nothing(results, tmp_path):
    names = ["_hidden", "$\\nonsense$", "cifar100_5phases_" * 12, "W" * 80]
    picture = plotted(tmp_path, *((name, results) for name in names))
    assert count(picture[300:], BLUE) > 20  # the legend has "_hidden" too
    pictures = [picture, *(plotted(tmp_path, (name, results)) for name in names[1:])]  # the title of a single run
    assert all((picture[[0, 1, -2, -1]] == 255).all() for picture in pictures)
    assert all((picture[:, [0, 1, -2, -1]] == 255).all() for picture in pictures)
