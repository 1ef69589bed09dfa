"""Grids of exemplars, on images made by hand."""

import numpy as np
import torch
from pictures import count, pixels

from mnemonics.reporting import exemplar_grid
from mnemonics.reporting.figures import text_width


def solid(colours, side=8) -> torch.Tensor:
    """uint8 [n, 3, side, side]: one image of a single colour per entry of `colours`."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, side, side).contiguous()


def test_exemplar_panels_by_hand():
    before = torch.tensor([100, 100, 100, 250, 3, 0, 255], dtype=torch.uint8)
    after = torch.tensor([100, 103, 98, 255, 0, 255, 0], dtype=torch.uint8)
    difference = exemplar_grid.exemplar_panels(before, after, 5)
    assert difference.dtype == torch.uint8
    assert difference.tolist() == [128, 143, 118, 153, 113, 255, 0]  # the last two are clipped: 1403 and -1147
    assert exemplar_grid.exemplar_panels(before, after, 1).tolist() == [128, 131, 126, 133, 125, 255, 0]


def test_grid_shows_every_pixel_of_before_after_and_difference(tmp_path):
    before, after = solid([(10, 20, 30), (200, 0, 90)]), solid([(20, 20, 29), (200, 40, 90)])
    exemplar_grid.plot_exemplars(before, after, torch.tensor([0, 1]), ["zero", "one"], tmp_path / "e.png")
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
    exemplar_grid.plot_exemplars(image, image, torch.tensor([0]), ["a"], tmp_path / "e.png")
    picture = pixels(tmp_path / "e.png")
    ys, xs = np.nonzero((picture == (255, 10, 10)).all(axis=2))
    assert (np.ptp(ys), np.ptp(xs), len(ys)) == (3, 3, 16)  # one square of 4 by 4
    black_ys, black_xs = np.nonzero((picture[:, 30:] == 0).all(axis=2))  # right of the class name
    tile_left = black_xs[black_ys == ys.max()].min() + 30
    assert (ys.min() - exemplar_grid.TITLE_HEIGHT, xs.min() - tile_left) == (2 * 4, 5 * 4)


def test_equal_pairs_give_one_panel(tmp_path):
    before = solid([(10, 20, 30), (60, 70, 80)])
    after = before.clone()
    labels = torch.tensor([0, 0])
    exemplar_grid.plot_exemplars(before, after, labels, ["a"], tmp_path / "one.png")
    after[0, 0, 0, 0] += 1
    exemplar_grid.plot_exemplars(before, after, labels, ["a"], tmp_path / "three.png")
    below = slice(exemplar_grid.TITLE_HEIGHT, None)  # without the titles and names, whose edges hold every grey
    one, three = (pixels(tmp_path / name)[below, 32:] for name in ("one.png", "three.png"))
    assert one.shape[0] == three.shape[0]
    assert three.shape[1] > 2 * one.shape[1]
    assert (count(one, (60, 70, 80)), count(three, (60, 70, 80))) == (64 * 64, 2 * 64 * 64)
    assert (count(one, (128, 128, 128)), count(three, (128, 128, 128))) == (0, 2 * 64 * 64 - 8 * 8)


def test_rows_are_evenly_spaced_classes_and_their_first_exemplars():
    labels = torch.arange(21).repeat(4).flip(0)  # 20, 19, ..., 0, four times
    rows = exemplar_grid.rows_of_classes(labels, max_classes=3, per_class=2)
    assert {label: indices.tolist() for label, indices in rows.items()} == {0: [20, 41], 10: [10, 31], 20: [0, 21]}
    some = exemplar_grid.rows_of_classes(torch.tensor([7, 3, 7, 7]), max_classes=10, per_class=5)
    assert [(label, indices.tolist()) for label, indices in some.items()] == [(3, [1]), (7, [0, 2, 3])]


def test_grid_draws_the_chosen_rows_only(tmp_path):
    colours = [(10 * i, 255 - 10 * i, 5) for i in range(21)]
    images = solid(colours).repeat_interleave(3, 0)
    exemplar_grid.plot_exemplars(
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
    exemplar_grid.plot_exemplars(
        solid([(255, 255, 255)]), solid([(255, 255, 255)]), torch.tensor([0]), ["."], tmp_path / "e.png"
    )
    assert count(pixels(tmp_path / "e.png")[exemplar_grid.TITLE_HEIGHT - 1 :], (190, 190, 190)) == 66 * 66 - 64 * 64


def test_class_names_and_titles_have_room(tmp_path):
    before, after = solid([(250, 0, 0), (0, 250, 0)]), solid([(251, 0, 0), (0, 251, 0)])
    widths = []
    for name in ("a", "a $\\very$ long _name_ of a class"):
        names = ["unused, so its length has no effect at all", "b", name]
        exemplar_grid.plot_exemplars(before, after, torch.tensor([1, 2]), names, tmp_path / "e.png", per_class=1)
        picture = pixels(tmp_path / "e.png")
        widths.append(picture.shape[1])
        ys, xs = np.nonzero((picture == (0, 250, 0)).all(axis=2))
        label = picture[ys.min() : ys.max(), : xs.min() - 1]
        assert (label.max(axis=2) < 80).sum() > 10  # dark: the name stands at the left of its row
        assert (label[:, -6:] == 255).all()  # and does not touch the image
        ink = np.nonzero((picture[: exemplar_grid.TITLE_HEIGHT - 1] < 128).any(axis=(0, 2)))[0]
        assert (np.diff(ink) > 20).sum() == 2  # three titles, clear of each other
        border = (picture[[0, -1]] == 255).all() and (picture[:, :8] == 255).all() and (picture[:, -8:] == 255).all()
        assert border
    assert widths[1] > widths[0] + 100


def test_large_images_are_thinned_out(tmp_path):
    images = torch.arange(224, dtype=torch.uint8).expand(1, 3, 200, 224).contiguous()
    assert exemplar_grid.screen_tiles(images).shape == (1, 100, 112, 3)
    assert exemplar_grid.screen_tiles(images)[0, 0, :, 0].tolist() == list(range(0, 224, 2))
    exemplar_grid.plot_exemplars(images, images, torch.tensor([0]), ["a"], tmp_path / "e.png")
    assert pixels(tmp_path / "e.png").shape[0] == exemplar_grid.TITLE_HEIGHT + 100 + exemplar_grid.MARGIN


def test_a_full_grid_of_noisy_images_shows_exact_colours(tmp_path):
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"class {i}" for i in range(10)]
    exemplar_grid.plot_exemplars(
        images, images.flip(0), torch.arange(10).repeat_interleave(5), names, tmp_path / "e.png"
    )
    picture = pixels(tmp_path / "e.png")
    left = text_width(names, 10) + 2 * exemplar_grid.MARGIN
    shown = picture[exemplar_grid.TITLE_HEIGHT :, left:][:64:2, :64:2]
    assert np.array_equal(shown, images[0].permute(1, 2, 0).numpy())
