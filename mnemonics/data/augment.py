"""Batched training augmentation on the device: random crop, mirror, normalise.

Drawing is apart from applying, so that the same draws can be replayed (`Crops` is what the bilevel optimiser fixes for
each of its steps) and the result can be compared with torchvision's transforms image by image. All is differentiable
with respect to floating-point images.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Crops(NamedTuple):
    """Random draws for n images: top left corner in the padded image, int64 [n] each, and mirror or not, bool [n]."""

    top: Tensor
    left: Tensor
    mirrored: Tensor


@dataclass(frozen=True)
class CropAndMirror:
    """Pad images, cut a window of their own size out of each and mirror some."""

    padding: int
    mirror: bool
    fill: Tensor | float = 0  # of the border: a number or one per channel; black, as torchvision pads, is 0 for pixels

    def draw(self, n: int, generator: torch.Generator) -> Crops:
        """Draw n crop positions in 0 .. 2 * padding and mirrorings (with probability 1/2 if `mirror`, else never)."""
        device = generator.device
        top, left = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator, device=device)
        mirrored = torch.rand(n, generator=generator, device=device) < (0.5 if self.mirror else 0.0)
        return Crops(top, left, mirrored)

    def apply(self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """[n, c, h, w] of any dtype -> the same in channels-last memory format; the rest is what `draw` gave."""
        n, _, h, w = images.shape
        padded = bordered(images, self.padding, self.fill)
        rows = top[:, None] + torch.arange(h, device=images.device)  # (n, h)
        columns = torch.arange(w, device=images.device).expand(n, w)
        columns = left[:, None] + torch.where(mirrored[:, None], w - 1 - columns, columns)  # (n, w)
        index = torch.arange(n, device=images.device)[:, None, None]
        cut = padded[index, :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, c): indexed dimensions come first
        return cut.permute(0, 3, 1, 2)


def bordered(images: Tensor, padding: int, fill: Tensor | float) -> Tensor:
    """`images` [n, c, h, w] with `padding` pixels of `fill` on each side; no value of it passes through the host."""
    sides = [padding] * 4
    if not isinstance(fill, Tensor):
        return F.pad(images, sides, value=fill)
    inside = F.pad(torch.ones_like(images[:1, :1], dtype=torch.bool), sides)
    return torch.where(inside, F.pad(images, sides), fill.reshape(-1, 1, 1).to(images))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images [n, c, h, w] -> float32 (image / 255 - mean) / std, with mean and std float [c]."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Inverse of `normalise`: clamp to the valid range and round to the nearest uint8, [n, c, h, w]."""
    pixels = (images.float() * std[:, None, None] + mean[:, None, None]) * 255
    return pixels.clamp(0, 255).round().to(torch.uint8)
