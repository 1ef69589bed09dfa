"""What a learner may keep of its old classes, and how much of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, rank_within_class
from mnemonics.data.sources import ImageSource
from mnemonics.engine.errors import UsageError


@dataclass(frozen=True)
class ExemplarMemory:
    """The exemplars E: uint8 images [n, 3, h, w] with labels int64 [n], class by class, most important first.

    Images are stored in the bytes that real images of that size take, optimised or not.
    """

    data: LabelledImages

    @staticmethod
    def empty(image_size: int, device: torch.device) -> "ExemplarMemory":
        return ExemplarMemory(
            LabelledImages(
                torch.empty(0, 3, image_size, image_size, dtype=torch.uint8, device=device),
                torch.empty(0, dtype=torch.int64, device=device),
            )
        )

    def __len__(self) -> int:
        return len(self.data)

    def counts(self) -> Tensor:
        """Exemplars of each label, int64 [highest label + 1]."""
        return torch.bincount(self.data.labels)

    def extended(self, new: LabelledImages) -> "ExemplarMemory":
        """With the exemplars `new`, of classes that were not in it, added.

        Raises:
            ValueError: if a class of `new` is in the memory already or an image is not uint8.
        """
        if new.images.dtype != torch.uint8:
            raise ValueError(f"exemplars are stored as uint8, not {new.images.dtype}")
        if torch.isin(new.labels, self.data.labels).any():
            raise ValueError("the memory already holds exemplars of a class that is to be added")
        return ExemplarMemory(self.data.and_also(new))

    def with_images(self, images: Tensor) -> "ExemplarMemory":
        """The same labels with other pixels: uint8 of the same shape."""
        if images.dtype != torch.uint8 or images.shape != self.data.images.shape:
            raise ValueError(f"expected uint8 images of shape {tuple(self.data.images.shape)}")
        return ExemplarMemory(LabelledImages(images, self.data.labels))

    def shrunk_to(self, per_class: int) -> "ExemplarMemory":
        """Keep the first `per_class` exemplars of each class."""
        return ExemplarMemory(self.data[rank_within_class(self.data.labels) < per_class])


def exemplars_per_class(config: ExperimentConfig, classes_seen: int, smallest_class: int) -> int:
    """The quota of each class once `classes_seen` classes are known: --nb_protos, or an equal share of --total_memory
    (rounded down; never more than the smallest class has, so that all classes keep equally many)."""
    if config.total_memory is None:
        return config.nb_protos
    return min(config.total_memory // classes_seen, smallest_class)


def check_budget(config: ExperimentConfig, source: ImageSource) -> None:
    """Raises UsageError when a class has too few images for its quota, or the total is less than one per class."""
    name, count = source.smallest_class()
    if config.nb_protos is not None and config.nb_protos > count:
        raise UsageError(
            f"--nb_protos {config.nb_protos}: class {name!r} has only {count} training images; "
            f"{count} or fewer would work"
        )
    if config.total_memory is not None and config.total_memory < source.num_classes:
        raise UsageError(
            f"--total_memory {config.total_memory}: fewer than one exemplar for each of the "
            f"{source.num_classes} classes; {source.num_classes} or more would work"
        )
