"""Choosing real images as exemplars: pure functions of labels and features."""

import torch
from torch import Tensor

from mnemonics.data.image_source import rank_within_class


def random_selection(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices (int64 [classes * per_class], class by class) of `per_class` random images of each class in `labels`."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    chosen = shuffled[rank_within_class(labels[shuffled]) < per_class]
    return chosen[torch.argsort(labels[chosen], stable=True)]


def herding_selection(features: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """Herding of every class in `labels` (iCaRL, Rebuffi et al. 2017, Algorithm 4).

    Args:
        features: float [n, d], not normalised.
        labels: int64 [n].
    Returns:
        Indices int64 [classes * per_class], class by class, in the order chosen.
    """
    members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    return torch.cat([index[herd(features[index], per_class)] for index in members])


def herd(features: Tensor, count: int) -> Tensor:
    """Choose `count` rows of `features` [n, d] one by one so that their mean stays closest to the mean of all rows.

    Rows are L2-normalised first. Of k candidates the next is the argmin of |mean - (sum of chosen + x) / k|, which for
    unit vectors is the argmax of <k * mean - sum of chosen, x>. No row is chosen twice.

    Returns:
        int64 [min(count, n)], in the order chosen.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    mean = unit.mean(0)
    chosen_sum, available = torch.zeros_like(mean), torch.zeros(len(unit), dtype=unit.dtype, device=unit.device)
    chosen = []
    for k in range(1, min(count, len(unit)) + 1):
        best = torch.argmax(unit @ (k * mean - chosen_sum) + available)
        available[best] = -torch.inf
        chosen_sum = chosen_sum + unit[best]
        chosen.append(best)
    return torch.stack(chosen)
