"""What every baseline shares: growing the classifier and keeping the previous model as the teacher."""

import copy
from abc import ABC, abstractmethod

from torch import Tensor, nn

from mnemonics.config import ExperimentConfig
from mnemonics.models.layers import grown
from mnemonics.protocol import Phase


class Baseline(ABC):
    """A way of training without forgetting: a loss, and which classifier is used at test time."""

    headline = "cnn"  # what the paper's table shows: "cnn" (network output) or "nme" (nearest mean of exemplars)

    def __init__(self, config: ExperimentConfig):
        self.config = config
        self.teacher: nn.Module | None = None

    def begin_phase(self, model: nn.Module, phase: Phase) -> None:
        """From phase 1 on: freeze a copy of `model` as the teacher, then add the new classes to its classifier."""
        if phase.index > 0:
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
            model.classifier = grown(model.classifier, len(phase.new_labels))

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Training loss (scalar) of a batch of normalised images [n, 3, h, w] with labels int64 [n]."""
