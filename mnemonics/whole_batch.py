"""The model level on several processes: each sends its share of a batch through the network, and all of them compute
the loss of the whole batch from the features of all shares.

So the loss is the one that a single process would have, also where it is no mean over images (LUCIR's margin ranking is
one over the exemplars in the batch), and no baseline needs to know how many processes there are.
"""

import copy
import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnemonics.baselines.base import Baseline
from mnemonics.engine.distributed import gathered, world

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_function(model: nn.Module, baseline: Baseline) -> Loss:
    """(network input of this process's share [m, 3, h, w], labels of the whole batch int64 [n]) -> loss of the batch.

    On several processes, backward leaves the gradient of that loss in the parameters of every process.
    """
    if world() == 1:
        return functools.partial(baseline.loss, model)
    device = next(model.parameters()).device
    # all processes see the same batches, so no buffer has to be sent: not the statistics of BatchNorm either
    return DistributedDataParallel(
        LossOfBatch(model, baseline),
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
    )


class LossOfBatch(nn.Module):
    """What DistributedDataParallel wraps: it averages the gradients that `gathered` scales for it."""

    def __init__(self, model: nn.Module, baseline: Baseline):
        super().__init__()
        self.model, self.baseline = model, baseline

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        total, baseline = len(labels), copy.copy(self.baseline)
        if baseline.teacher is not None:
            baseline.teacher = OfWholeBatch(baseline.teacher, total)
        return baseline.loss(OfWholeBatch(self.model, total), images, labels)


class OfWholeBatch:
    """A network that takes this process's share of a batch and returns features, or logits, of all `total` images."""

    def __init__(self, model: nn.Module, total: int):
        self.model, self.total = model, total
        self.classifier = model.classifier

    def features(self, images: Tensor) -> Tensor:
        return gathered(self.model.features(images), self.total)

    def __call__(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))
