"""Grids of exemplars (mnemonics/reporting/figures.py), on images made by hand."""

import numpy as np
import pytest
import torch
from reports import count, pixels

from mnemonics.reporting import figures
from mnemonics.reporting.figures import FRAME, MARGIN, plot_exemplars


@pytest.fixture
def plotted(tmp_path):
    """The picture of exemplars, given as `plot_exemplars` takes them but for the labels."""

    def plot(before, after, labels, names):
        plot_exemplars(before, after, torch.tensor(labels), names, tmp_path / "e.png")
        return pixels(tmp_path / "e.png")

    return plot


def solid(*colours):
    """uint8 [n, 3, 8, 8]: an image of a single colour for each of `colours`."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def where(picture, colour):
    return np.nonzero((picture == colour).all(axis=2))


def test_grid_shows_every_pixel_of_before_after_and_amplified_difference(plotted):
    rows = [(10, 20, 30), (20, 20, 29), (178, 128, 123)], [(200, 0, 90), (200, 40, 90), (128, 255, 128)]  # 328 clipped
    before, after = (solid(*(row[i] for row in rows)) for i in range(2))
    picture = plotted(before, after, [0, 1], ["zero", "a $\\very$ long _name_ of a class"])
    assert [count(picture, colour) for row in rows for colour in row] == [64 * 64] * 6  # 8x8 pixels, each of 8x8
    columns = [[int(where(picture, colour)[1].min()) for colour in row] for row in rows]
    assert columns[0] == columns[1] == sorted(columns[0])  # from left to right
    top, bottom = (int(where(picture, row[0])[0].min()) for row in rows)
    assert bottom >= top + 64
    assert count(picture, (FRAME,) * 3) >= 6 * (66 * 66 - 64 * 64)
    name, titles = picture[bottom : bottom + 64, : columns[0][0] - 1], picture[: 2 * MARGIN]
    assert (name.max(axis=2) < 80).sum() > 10  # dark: it stands at the left of its row
    assert (name[:, -6:] == 255).all()  # and does not touch the image
    gaps = np.diff(np.nonzero((titles < 128).any(axis=(0, 2)))[0])
    assert (gaps > 20).sum() == 2  # three titles, clear of each other


def test_grid_keeps_the_orientation_of_an_image(plotted):
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[0, :, 2, 5] = torch.tensor([255, 10, 10], dtype=torch.uint8)  # third row, sixth column
    picture = plotted(image, image, [0], ["a"])
    (ys, xs), (all_ys, all_xs) = where(picture, (255, 10, 10)), where(picture, (0, 0, 0))
    assert (np.ptp(ys), np.ptp(xs), len(ys)) == (3, 3, 16)  # one square of 4 by 4
    inside = (all_ys >= ys.min() - 8) & (all_xs >= xs.min() - 20)  # not the letters
    assert (ys.min() - all_ys[inside].min(), xs.min() - all_xs[inside].min()) == (2 * 4, 5 * 4)


def test_equal_pairs_give_one_panel_of_evenly_spaced_classes_and_their_first_exemplars(plotted):
    colours = [(10 * i, 255 - 10 * i, 5) for i in range(21)]
    images = solid(*colours).repeat_interleave(6, 0)
    picture = plotted(images, images, torch.arange(21).repeat_interleave(6).tolist(), list(map(str, range(21))))
    shown = {i: count(picture, colour) for i, colour in enumerate(colours) if count(picture, colour)}
    assert list(shown.items()) == [(i, 5 * 64 * 64) for i in (0, 2, 4, 7, 9, 11, 13, 16, 18, 20)]
    assert count(picture[2 * MARGIN :, 50:], (128, 128, 128)) == 0  # no panel of the difference
    rows = figures.rows_of_classes(torch.tensor([7, 3, 7, 7]))
    assert [(label, indices.tolist()) for label, indices in rows.items()] == [(3, [1]), (7, [0, 2, 3])]


def test_large_images_are_thinned_out():
    shown = figures.enlarged(torch.arange(224, dtype=torch.uint8).expand(1, 3, 200, 224).contiguous())
    assert shown.shape == (1, 3, 100, 112)
    assert shown[0, 0, 0].tolist() == list(range(0, 224, 2))
