"""What is learned: a data set whose classes arrive in phases; and what the parts of one phase share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.data.identity import Identity, identity_of
from mnemonics.data.image_source import ImageSource
from mnemonics.engine.device import generator
from mnemonics.engine.progress import Progress
from mnemonics.protocol import Phase, Protocol


@dataclass(frozen=True)
class Scenario:
    """A data set, its classes in the order of the protocol, on one device. Labels are positions in that order."""

    config: ExperimentConfig
    source: ImageSource
    protocol: Protocol
    prep: Preprocessing
    device: torch.device

    def train_data(self, phases: Sequence[Phase]) -> LabelledImages:
        """Training images of the classes new in `phases`."""
        return self.labelled(*self.source.train([c for phase in phases for c in phase.class_ids]))

    def test_data(self, phase: Phase) -> LabelledImages:
        """Test images of all classes seen after `phase`."""
        return self.labelled(*self.source.test(self.protocol.order[: phase.seen]))

    def labelled(self, images: torch.Tensor, class_ids: torch.Tensor) -> LabelledImages:
        labels = torch.from_numpy(self.protocol.labels_of(class_ids.numpy()))
        return LabelledImages(images.to(self.device), labels.to(self.device))

    @cached_property
    def identity(self) -> Identity:
        """Of the data set."""
        return identity_of(self.source)

    @property
    def names_of_labels(self) -> list[str]:
        """The names of all classes, in class order."""
        return [self.source.class_names[c] for c in self.protocol.order]


@dataclass(frozen=True)
class PhaseContext:
    """What the parts of one phase read, and where they say how far they are."""

    scenario: Scenario
    phase: Phase
    progress: Progress

    @property
    def config(self) -> ExperimentConfig:
        return self.scenario.config

    @property
    def prep(self) -> Preprocessing:
        return self.scenario.prep

    def generator(self, purpose: str) -> torch.Generator:
        """The random numbers for one purpose in this phase, on the device; the same each time it is asked for."""
        return generator(self.config.random_seed, self.phase.index, purpose, self.scenario.device)

    def new_data(self) -> LabelledImages:
        """D_i: the training images of the classes that are new in this phase."""
        return self.scenario.train_data([self.phase])

    def earlier_data(self) -> LabelledImages:
        """All training images of earlier phases, which only a bound may see."""
        return self.scenario.train_data(self.scenario.protocol.phases[: self.phase.index])

    def seen_data(self) -> LabelledImages:
        """All training images of the classes seen so far, which a learner would no longer have."""
        return self.scenario.train_data(self.scenario.protocol.phases[: self.phase.index + 1])
