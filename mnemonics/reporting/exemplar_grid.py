"""Grids of exemplars: before they were optimised, after it, and the amplified difference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mnemonics.reporting.figures import DPI, save_figure, text_width

TILE = 64  # side at which a small exemplar is shown, in screen pixels (rounded to a whole multiple of its own)
MARGIN, GAP, PANEL_GAP, TITLE_HEIGHT = 12, 6, 26, 32  # in screen pixels


def exemplar_panels(before: torch.Tensor, after: torch.Tensor, amplify: int) -> torch.Tensor:
    """The amplified change of the exemplars: 128 + amplify * (after - before), clipped to 0..255.

    Args:
        before, after: uint8 tensors of one shape, e.g. [n, 3, H, W].
    Returns:
        uint8 tensor of the same shape; 128 (grey) where nothing changed.
    """
    change = after.int() - before.int()  # signed: uint8 arithmetic would wrap around
    return (128 + amplify * change).clamp(0, 255).to(torch.uint8)


def rows_of_classes(labels: torch.Tensor, max_classes: int, per_class: int) -> dict[int, torch.Tensor]:
    """Which exemplars a grid shows: evenly spaced labels of those in `labels` (int64 [n]) -> int64 [<= per_class]."""
    present = labels.unique().tolist()  # sorted
    spaced = np.linspace(0, len(present) - 1, min(max_classes, len(present))).round().astype(int)
    return {present[i]: (labels == present[i]).nonzero().flatten()[:per_class] for i in spaced}


def screen_tiles(images: torch.Tensor) -> np.ndarray:
    """uint8 [n, 3, H, W] -> uint8 [n, h, w, 3]: each pixel a square of screen pixels; large images are thinned out."""
    side = max(images.shape[2:])
    step, scale = -(-side // (2 * TILE)), max(1, round(TILE / side))
    thin = images[:, :, ::step, ::step].permute(0, 2, 3, 1).cpu().numpy()
    return thin.repeat(scale, axis=1).repeat(scale, axis=2)


def plot_exemplars(
    before: torch.Tensor,
    after: torch.Tensor,
    labels: torch.Tensor,
    class_names: Sequence[str],
    path: str | Path,
    amplify: int = 5,
    max_classes: int = 10,
    per_class: int = 5,
) -> None:
    """Write a PNG grid of exemplars before and after they were optimised: a row per class, three panels side by side.

    Args:
        before, after: uint8 [n, 3, H, W]. Where they are equal (real images) a single panel is drawn.
        labels: int64 [n], positions in the class order.
        class_names: the name of each label.
        path: the PNG to write, in exact colours.
        amplify: factor of the difference panel.
        max_classes: rows; of more classes, evenly spaced ones are shown.
        per_class: exemplars per row, the first ones of the class.
    """
    panels = (
        {"exemplars": after}
        if before.equal(after)
        else {"before": before, "after": after, f"difference x{amplify}": exemplar_panels(before, after, amplify)}
    )
    rows = rows_of_classes(labels, max_classes, per_class)
    names = [str(class_names[label]) for label in rows]
    height, width = screen_tiles(after[:1]).shape[1:3]
    left = MARGIN + text_width(names, 10) + MARGIN
    panel_width = max(max(map(len, rows.values())) * (width + GAP) - GAP, text_width(list(panels), 11))
    total_width = left + len(panels) * (panel_width + PANEL_GAP) - PANEL_GAP + MARGIN
    total_height = TITLE_HEIGHT + len(rows) * (height + GAP) - GAP + MARGIN
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, size: int, align: str) -> None:  # in screen pixels from the upper left
        figure.text(x / total_width, 1 - y / total_height, text, fontsize=size, ha=align, va="center", parse_math=False)

    picture = np.full((total_height, total_width, 3), 255, np.uint8)
    for r, name in enumerate(names):
        write(left - MARGIN, TITLE_HEIGHT + r * (height + GAP) + height / 2, name, 10, "right")
    for p, (title, images) in enumerate(panels.items()):
        write(left + p * (panel_width + PANEL_GAP), TITLE_HEIGHT / 2, title, 11, "left")
        for r, indices in enumerate(rows.values()):
            for c, tile in enumerate(screen_tiles(images[indices])):
                y, x = TITLE_HEIGHT + r * (height + GAP), left + p * (panel_width + PANEL_GAP) + c * (width + GAP)
                picture[y - 1 : y + height + 1, x - 1 : x + width + 1] = 190  # a frame, for images with white borders
                picture[y : y + height, x : x + width] = tile
    figure.figimage(picture)  # unlike imshow it resamples nothing
    save_figure(figure, path)
