"""Grids of exemplars, on images made by hand."""

import numpy as np
import torch
from pictures import count, pixels

from mnemonics.reporting import exemplar_grid
from mnemonics.reporting.exemplar_grid import FRAME, TITLE_HEIGHT, plot_exemplars


def solid(colours, side=8) -> torch.Tensor:
    """uint8 [n, 3, side, side]: one image of a single colour per entry of `colours`."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, side, side).contiguous()


def plotted(tmp_path, before, after, labels, names):
    plot_exemplars(before, after, torch.tensor(labels), names, tmp_path / "e.png")
    return pixels(tmp_path / "e.png")


def where(picture, colour):
    return np.nonzero((picture == colour).all(axis=2))


def test_amplified_change_by_hand():
    before = torch.tensor([100, 100, 100, 250, 3, 0, 255], dtype=torch.uint8)
    after = torch.tensor([100, 103, 98, 255, 0, 255, 0], dtype=torch.uint8)
    difference = exemplar_grid.amplified_change(before, after)
    assert difference.dtype == torch.uint8
    assert difference.tolist() == [128, 143, 118, 153, 113, 255, 0]  # the last two are clipped: 1403 and -1147


def test_grid_shows_every_pixel_of_before_after_and_difference(tmp_path):
    before, after = solid([(10, 20, 30), (200, 0, 90)]), solid([(20, 20, 29), (200, 40, 90)])
    picture = plotted(tmp_path, before, after, [0, 1], ["zero", "a $\\very$ long _name_ of a class"])
    columns = []
    for row in ([(10, 20, 30), (20, 20, 29), (178, 128, 123)], [(200, 0, 90), (200, 40, 90), (128, 255, 128)]):
        assert [count(picture, colour) for colour in row] == [64 * 64] * 3  # 8x8 pixels, each shown as 8x8
        columns.append([int(where(picture, colour)[1].min()) for colour in row])
    assert columns[0] == columns[1] == sorted(columns[0])  # before, after, difference from left to right
    top, bottom = (int(where(picture, colour)[0].min()) for colour in ((10, 20, 30), (200, 0, 90)))
    assert bottom >= top + 64
    assert count(picture, (FRAME,) * 3) >= 6 * (66 * 66 - 64 * 64)
    label = picture[bottom : bottom + 64, : columns[0][0] - 1]
    assert (label.max(axis=2) < 80).sum() > 10  # dark: the name stands at the left of its row
    assert (label[:, -6:] == 255).all()  # and does not touch the image
    ink = np.nonzero((picture[: TITLE_HEIGHT - 1] < 128).any(axis=(0, 2)))[0]
    assert (np.diff(ink) > 20).sum() == 2  # three titles, clear of each other
    assert (picture[[0, -1]] == 255).all()
    assert (picture[:, [*range(8), *range(-8, 0)]] == 255).all()


def test_grid_keeps_the_orientation_of_an_image(tmp_path):
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[0, :, 2, 5] = torch.tensor([255, 10, 10], dtype=torch.uint8)  # third row, sixth column
    picture = plotted(tmp_path, image, image, [0], ["a"])
    ys, xs = where(picture, (255, 10, 10))
    assert (np.ptp(ys), np.ptp(xs), len(ys)) == (3, 3, 16)  # one square of 4 by 4
    frame_ys, frame_xs = where(picture, (FRAME,) * 3)
    corner = (int(frame_ys[frame_ys >= TITLE_HEIGHT].min()) + 1, int(frame_xs[frame_ys == ys.min()].min()) + 1)
    assert (int(ys.min()), int(xs.min())) == (corner[0] + 2 * 4, corner[1] + 5 * 4)


def test_equal_pairs_give_one_panel_of_the_chosen_rows(tmp_path):
    colours = [(10 * i, 255 - 10 * i, 5) for i in range(21)]
    labels = torch.arange(21).repeat_interleave(6).tolist()
    images = solid(colours).repeat_interleave(6, 0)
    picture = plotted(tmp_path, images, images, labels, [str(i) for i in range(21)])
    shown = {i: count(picture, colour) for i, colour in enumerate(colours) if count(picture, colour)}
    assert len(shown) == 10
    assert shown.keys() > {0, 20}
    assert set(shown.values()) == {5 * 64 * 64}
    assert count(picture[TITLE_HEIGHT:, 50:], (128, 128, 128)) == 0  # no panel of the difference


def test_rows_are_evenly_spaced_classes_and_their_first_exemplars(monkeypatch):
    some = exemplar_grid.rows_of_classes(torch.tensor([7, 3, 7, 7]))
    assert [(label, indices.tolist()) for label, indices in some.items()] == [(3, [1]), (7, [0, 2, 3])]
    monkeypatch.setattr(exemplar_grid, "MAX_CLASSES", 3)
    monkeypatch.setattr(exemplar_grid, "PER_CLASS", 2)
    rows = exemplar_grid.rows_of_classes(torch.arange(21).repeat(4).flip(0))  # 20, 19, ..., 0, four times
    assert {label: indices.tolist() for label, indices in rows.items()} == {0: [20, 41], 10: [10, 31], 20: [0, 21]}


def test_large_images_are_thinned_out():
    images = torch.arange(224, dtype=torch.uint8).expand(1, 3, 200, 224).contiguous()
    shown = exemplar_grid.enlarged(images)
    assert shown.shape == (1, 3, 100, 112)
    assert shown[0, 0, 0].tolist() == list(range(0, 224, 2))
