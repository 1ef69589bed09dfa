"""What every baseline shares: growing the classifier and keeping the previous model as the teacher."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.evaluation import features_of, mean_features
from mnemonics.models import folded
from mnemonics.models.layers import SplitCosineLinear, grown, use_weight_transfer
from mnemonics.protocol import Phase


class Baseline(ABC):
    """A way of training without forgetting: a loss, and which classifier is used at test time.

    Most baselines consist of the loss alone; the other methods are the places where some of them do more.
    """

    headline = "cnn"  # what the paper's table shows: "cnn" (network output) or "nme" (nearest mean of exemplars)
    rehearses = "exemplars"  # what it trains on beside D_i: "exemplars", "nothing" or "everything" of earlier phases
    imprints = False  # whether new class weights start from the mean feature of their images and old ones stay fixed

    def __init__(self, config: ExperimentConfig):
        self.config = config
        self.teacher: nn.Module | None = None
        self.scale = 1.0  # of the distillation's weight, in this phase; see `distillation_scale`

    def begin_phase(self, model: nn.Module, phase: Phase, new_data: LabelledImages, prep: Preprocessing) -> None:
        """From phase 1 on: make a frozen copy of `model` the teacher, then add the new classes to its classifier and,
        with --weight_transfer, factors to its convolutions. `new_data` is what `model` will be trained on."""
        if phase.index > 0:
            self.teacher = folded(model)
            model.classifier = grown(model.classifier, len(phase.new_labels))
            if self.config.weight_transfer:
                use_weight_transfer(model)
            if self.imprints:
                features = features_of(model, new_data.images, prep, self.config.eval_batch_size)
                imprint(model.classifier, features, new_data.labels)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What the model level trains."""
        old = getattr(model.classifier, "old_weight", None) if self.imprints else None  # phase 0 has none
        return [p for p in model.parameters() if p.requires_grad and p is not old]

    @classmethod
    def is_bound(cls) -> bool:
        """Whether it is no method but what any method lies between: exemplars are stored for NME alone."""
        return cls.rehearses != "exemplars"

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Training loss (scalar) of a batch of normalised images [n, 3, h, w] with labels int64 [n]."""

    def held_out(self, quota: int) -> int:
        """How many of the `quota` exemplars of a class are kept away from training, for `calibrate`."""
        return 0

    def calibrate(self, model: nn.Module, held_out: LabelledImages, prep: Preprocessing) -> None:  # noqa: B027
        """Correct `model` in place by means of exemplars that it was not trained on (stage 2 of BiC)."""


def distillation_scale(phase: Phase, new: int, old: int) -> float:
    """By how much --scale_distillation weakens the distillation of a phase: 1 without old images, 0 where they have the
    share of an epoch that their classes have of all, as if all of them were kept.

    Args:
        new, old: images of new and old classes in an epoch.
    """
    return max(0.0, 1 - (old / (new + old)) / (phase.first / phase.seen))


@torch.no_grad()
def imprint(classifier: SplitCosineLinear, features: Tensor, labels: Tensor) -> None:
    """Set the weights of the new classes to the direction of the mean normalised feature of their images (features
    float [n, d], labels int64 [n]), with the mean norm of the old weights."""
    num_old, num_new = len(classifier.old_weight), len(classifier.new_weight)
    directions = F.normalize(mean_features(features, labels - num_old, num_new), dim=1)
    classifier.new_weight.copy_(directions * classifier.old_weight.norm(dim=1).mean())
