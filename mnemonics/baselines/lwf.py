"""Learning without Forgetting (Li and Hoiem 2016), with exemplars."""

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.baselines.base import Baseline


def distillation(logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """KL divergence (nats) from the teacher's to the student's softened outputs, both logits [n, c]: the mean over all
    n * c elements, which is 1/c of the usual mean over the batch. The weight of the loss makes up for it."""
    student, teacher = F.log_softmax(logits / T, dim=1), F.log_softmax(teacher_logits / T, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).mean()


class LwF(Baseline):
    """Cross-entropy + beta * T^2 * n_old * distillation of the old classes' logits."""

    @property
    def imprints(self) -> bool:
        return self.config.imprint

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        old = self.teacher(images)
        T, num_old = self.config.T, old.shape[1]
        return loss + self.scale * self.config.beta * T**2 * num_old * distillation(logits[:, :num_old], old, T)
