"""Grids of exemplars: before they were optimised, after it, and the amplified difference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from mnemonics.reporting.figures import DPI, save_figure, text_width

AMPLIFY, MAX_CLASSES, PER_CLASS = 5, 10, 5  # factor of the difference; rows and columns of a panel
TILE = 64  # side at which a small exemplar is shown, in screen pixels (rounded to a whole multiple of its own)
MARGIN, GAP, PANEL_GAP, TITLE_HEIGHT = 12, 4, 26, 32  # in screen pixels
FRAME = 190  # grey level around an image, which may have white borders


def plot_exemplars(before: Tensor, after: Tensor, labels: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Write a PNG of exemplars before and after they were optimised, in exact colours: a row per class (of many
    classes, evenly spaced ones), panels side by side.

    Args:
        before, after: uint8 [n, 3, H, W]. Where they are equal (real images) there is a single panel.
        labels: int64 [n], positions in the class order.
        class_names: the name of each label.
    """
    panels = {"before": before, "after": after, f"difference x{AMPLIFY}": amplified_change(before, after)}
    if before.equal(after):
        panels = {"exemplars": after}
    rows = rows_of_classes(labels)
    names, grids = [str(class_names[label]) for label in rows], [grid_of(p, rows) for p in panels.values()]
    left, step = 2 * MARGIN + text_width(names, 10), max(grids[0].shape[1], text_width(list(panels), 11)) + PANEL_GAP
    width, height = left + len(panels) * step - PANEL_GAP + MARGIN, TITLE_HEIGHT + grids[0].shape[0] + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for i, (title, grid) in enumerate(zip(panels, grids, strict=True)):
        figure.figimage(grid, left + i * step, MARGIN)  # unlike imshow it resamples nothing
        look = {"fontsize": 11, "va": "center"}
        figure.text((left + i * step + GAP) / width, 1 - TITLE_HEIGHT / 2 / height, title, **look)
    for i, name in enumerate(names):
        y = TITLE_HEIGHT + (i + 0.5) * grids[0].shape[0] / len(names)
        look = {"fontsize": 10, "ha": "right", "va": "center", "parse_math": False}
        figure.text((left - MARGIN) / width, 1 - y / height, name, **look)
    save_figure(figure, path)


def amplified_change(before: Tensor, after: Tensor) -> Tensor:
    """128 + AMPLIFY * (after - before) of uint8 tensors of one shape, clipped to 0..255: grey where nothing changed."""
    change = after.int() - before.int()  # signed: uint8 arithmetic would wrap around
    return (128 + AMPLIFY * change).clamp(0, 255).to(torch.uint8)


def rows_of_classes(labels: Tensor) -> dict[int, Tensor]:
    """Which exemplars a grid shows: evenly spaced labels of those in `labels` (int64 [n]) -> int64 [<= PER_CLASS]."""
    present = labels.unique().tolist()  # sorted
    spaced = np.linspace(0, len(present) - 1, min(MAX_CLASSES, len(present))).round().astype(int)
    return {present[i]: (labels == present[i]).nonzero().flatten()[:PER_CLASS] for i in spaced}


def grid_of(images: Tensor, rows: dict[int, Tensor]) -> np.ndarray:
    """uint8 [n, 3, H, W] -> uint8 [h, w, 3]: the chosen images on white, each with a frame."""
    columns = max(map(len, rows.values()))
    framed = [F.pad(enlarged(images[chosen]), (1, 1, 1, 1), value=FRAME) for chosen in rows.values()]
    full = [F.pad(row, (0, 0) * 3 + (0, columns - len(row)), value=255) for row in framed]
    return make_grid(torch.cat(full), columns, GAP, pad_value=255).permute(1, 2, 0).numpy()


def enlarged(images: Tensor) -> Tensor:
    """[n, 3, H, W] as large as they are shown: each pixel a square of screen pixels; large images are thinned out."""
    side = max(images.shape[2:])
    step, scale = -(-side // (2 * TILE)), max(1, round(TILE / side))
    thin = images[:, :, ::step, ::step].cpu()
    return thin.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
