"""LUCIR: learning a unified classifier incrementally via rebalancing (Hou et al. 2019)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.baselines.base import Baseline


def less_forget(features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 - cosine between the features of student and teacher, [n, d] each: the mean over the n images."""
    return (1 - F.cosine_similarity(features, teacher_features, dim=1)).mean()


def margin_ranking(cosines: Tensor, labels: Tensor, num_old: int, K: int, margin: float) -> Tensor:
    """Each exemplar shall be closer to its own class than to any new class, by `margin`.

    Args:
        cosines: float [n, c], before sigma; the new classes are the columns from `num_old` on.
        labels: int64 [n]. Images of new classes do not take part.
    Returns:
        max(0, margin - cosine to the own class + cosine to a new class): the mean over the exemplars in the batch and
        their K nearest new classes (all of them where there are fewer). 0 for a batch without exemplars.
    """
    own = cosines.gather(1, labels[:, None])  # (n, 1)
    nearest = cosines[:, num_old:].topk(min(K, cosines.shape[1] - num_old), dim=1).values  # (n, K)
    is_exemplar = (labels < num_old)[:, None]  # a mask, not an index, which would stall a GPU
    violations = F.relu(margin - own + nearest) * is_exemplar
    return violations.sum() / (is_exemplar.sum() * nearest.shape[1]).clamp(min=1)


class LUCIR(Baseline):
    """Cross-entropy + lamda * sqrt(old / new classes) * less-forget + lw_mr * margin ranking. The weights of old
    classes stay as they are, those of new ones start from the mean feature of their images."""

    imprints = True

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        config, classifier = self.config, model.classifier
        features = model.features(images)
        cosines = classifier.cosines(features)
        loss = F.cross_entropy(classifier.sigma * cosines, labels)
        if self.teacher is None:
            return loss
        num_old, num_new = len(classifier.old_weight), len(classifier.new_weight)
        forgetting = less_forget(features, self.teacher.features(images))
        ranking = margin_ranking(cosines, labels, num_old, config.K, config.dist)
        weight = self.scale * config.lamda * math.sqrt(num_old / num_new)
        return loss + weight * forgetting + config.lw_mr * ranking
