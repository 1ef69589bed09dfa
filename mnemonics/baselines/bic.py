"""BiC: large scale incremental learning by bias correction (Wu et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.baselines.base import Baseline
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.evaluation import features_of
from mnemonics.models.layers import BiasCorrected
from mnemonics.protocol import Phase

HELD_OUT_SHARE = 10  # one exemplar in ten
RIDGE = 1e-3  # on scale - 1 and shift: next to nothing, but it keeps them finite where held-out images are separable


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """Cross-entropy (nats) of the softened outputs, both logits [n, c]: the mean over the n images, without T^2."""
    return F.cross_entropy(logits / T, F.softmax(teacher_logits / T, dim=1))


class BiC(Baseline):
    """Stage 1: (1 - lambda) * cross-entropy + lambda * distillation of the old classes' outputs, lambda = old / all
    classes. Stage 2: scale and shift of the new classes' logits, fitted on a balanced held-out tenth of the exemplars.

    The correction is part of the classifier, so that it counts wherever the network is used, as a teacher too.
    """

    def begin_phase(self, model: nn.Module, phase: Phase, new_data: LabelledImages, prep: Preprocessing) -> None:
        if phase.index == 1:
            model.classifier = BiasCorrected(model.classifier)
        super().begin_phase(model, phase, new_data, prep)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        old = self.teacher(images)
        share = old.shape[1] / logits.shape[1]
        return (1 - share) * loss + share * soft_cross_entropy(logits[:, : old.shape[1]], old, self.config.T)

    def held_out(self, quota: int) -> int:
        """A tenth of the exemplars of a class, at least one, but never the only one."""
        return max(1, quota // HELD_OUT_SHARE) if quota > 1 else 0

    def calibrate(self, model: nn.Module, held_out: LabelledImages, prep: Preprocessing) -> None:
        """Stage 2, from phase 1 on."""
        if self.teacher is None or len(held_out) == 0:
            return
        features = features_of(model, held_out.images, prep, self.config.eval_batch_size)
        corrected = model.classifier
        num_new = len(corrected.classifier.new_weight)
        corrected.scale[-num_new:], corrected.shift[-num_new:] = 1.0, 0.0
        with torch.no_grad():
            logits = corrected(features)
        corrected.scale[-num_new:], corrected.shift[-num_new:] = fit_correction(logits, held_out.labels, num_new)


def fit_correction(logits: Tensor, labels: Tensor, num_new: int) -> tuple[float, float]:
    """The scale and shift of the last `num_new` columns of logits [n, c] that minimise the cross-entropy with labels
    int64 [n], a convex problem, by L-BFGS in float64."""
    logits = logits.double()
    old, new = logits[:, :-num_new], logits[:, -num_new:]
    correction = torch.tensor([1.0, 0.0], dtype=torch.float64, device=logits.device, requires_grad=True)
    identity = correction.detach().clone()
    optimizer = torch.optim.LBFGS([correction], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        outputs = torch.cat([old, correction[0] * new + correction[1]], dim=1)
        value = F.cross_entropy(outputs, labels) + RIDGE * (correction - identity).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    scale, shift = correction.tolist()
    return scale, shift
