"""What a learner may keep of its old classes, and how much of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, rank_within_class
from mnemonics.data.image_source import ImageSource
from mnemonics.engine.errors import UsageError


@dataclass(frozen=True)
class ExemplarMemory:
    """The exemplars E: uint8 images [n, 3, h, w] with labels int64 [n], those of a class with the most important first.

    Images are stored in the bytes that real images of that size take, optimised or not. Some may be held out of all
    training, for `Baseline.calibrate`; they count like the others.
    """

    data: LabelledImages
    held_out: Tensor  # bool [n]

    @staticmethod
    def empty(image_size: int, device: torch.device) -> "ExemplarMemory":
        nothing = LabelledImages(
            torch.empty(0, 3, image_size, image_size, dtype=torch.uint8, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
        )
        return ExemplarMemory(nothing, torch.empty(0, dtype=torch.bool, device=device))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def training(self) -> LabelledImages:
        """The exemplars that may be trained on."""
        return self.data[~self.held_out] if self.held_out.any() else self.data

    @property
    def calibration(self) -> LabelledImages:
        """The exemplars that are held out of training."""
        return self.data[self.held_out]

    def extended(self, new: LabelledImages, held_out: bool = False) -> "ExemplarMemory":
        """With exemplars of new classes added.

        Raises:
            ValueError: if a class of `new` has such exemplars in the memory already or an image is not uint8.
        """
        if new.images.dtype != torch.uint8:
            raise ValueError(f"exemplars are stored as uint8, not {new.images.dtype}")
        if torch.isin(new.labels, self.data.labels[self.held_out == held_out]).any():
            raise ValueError("the memory already holds exemplars of a class that is to be added")
        mask = torch.full_like(new.labels, held_out, dtype=torch.bool)
        return ExemplarMemory(self.data.followed_by(new), torch.cat([self.held_out, mask]))

    def with_images(self, images: Tensor) -> "ExemplarMemory":
        """With other pixels for those in `training`: uint8 of the same shape."""
        if images.dtype != torch.uint8 or images.shape != self.training.images.shape:
            raise ValueError(f"expected uint8 images of shape {tuple(self.training.images.shape)}")
        everything = self.data.images.clone()
        everything[~self.held_out] = images
        return ExemplarMemory(LabelledImages(everything, self.data.labels), self.held_out)

    def shrunk_to(self, per_class: int, held_out: int = 0) -> "ExemplarMemory":
        """Keep the first `per_class` exemplars of each class and the first `held_out` of those held out."""
        rank = rank_within_class(2 * self.data.labels + self.held_out)
        kept = rank < torch.where(self.held_out, held_out, per_class)
        return ExemplarMemory(self.data[kept], self.held_out[kept])


def exemplars_per_class(config: ExperimentConfig, counts: list[int]) -> int:
    """The quota of each class: --nb_protos, or an equal share of --total_memory among the classes seen. A class with
    fewer images keeps what it has, and leaves the rest of its share to the others.

    Args:
        counts: training images of each class seen so far.
    """
    if config.total_memory is None:
        return config.nb_protos
    left = config.total_memory
    for position, count in enumerate(sorted(counts)):
        share = left // (len(counts) - position)
        if count >= share:
            return share
        left -= count
    return max(counts)


def check_budget(config: ExperimentConfig, source: ImageSource) -> str:
    """A notice where classes have fewer images than exemplars are asked for, else an empty text.

    Raises:
        UsageError: where the total is less than one exemplar for each class.
    """
    if config.total_memory is not None and config.total_memory < source.num_classes:
        raise UsageError(f"--total_memory {config.total_memory}: {source.num_classes} or more, one for each class")
    counts = source.train_counts()
    quota = exemplars_per_class(config, counts)
    small = [name for name, count in zip(source.class_names, counts, strict=True) if count < quota]
    if not small:
        return ""
    return f"{len(small)} classes, {small[0]!r} for example, have fewer than {quota} training images: all are kept"
