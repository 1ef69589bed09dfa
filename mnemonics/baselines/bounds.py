"""What any method lies between: forgetting nothing against (`finetune`), learning everything again (`joint`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.baselines.base import Baseline


class Finetune(Baseline):
    """Lower bound: cross-entropy on the new classes alone."""

    rehearses = "nothing"

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)


class Joint(Finetune):
    """Upper bound: cross-entropy on all training images seen so far."""

    rehearses = "everything"
