"""Cross-entropy alone: a baseline, and what any method lies between."""

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.baselines.base import Baseline


class Replay(Baseline):
    """Experience replay: cross-entropy on the new classes and the exemplars, nothing else."""

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)


class Finetune(Replay):
    """Lower bound: cross-entropy on the new classes alone."""

    rehearses = "nothing"


class Joint(Replay):
    """Upper bound: cross-entropy on all training images seen so far."""

    rehearses = "everything"
