"""What a data set is to the rest of the code: images for training and test, handed out class by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mnemonics.data.files import FileImages

Images = Tensor | FileImages


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors gives no single truth value
class ImageSource:
    """A data set: uint8 images [n, 3, H, W], contiguous, or images in files, with int64 class ids [n], for training and
    for test."""

    name: str
    class_names: tuple[str, ...]  # index = class id
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    crop_padding: int  # training augmentation: random crop after padding by this many pixels
    mirror: bool  # whether a mirrored image keeps its class (training augmentation and NME)
    notices: tuple[str, ...]  # lines to show the user
    train_images: Images = field(repr=False)
    train_class_ids: Tensor = field(repr=False)
    test_images: Images = field(repr=False)
    test_class_ids: Tensor = field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train_images.shape[-1]

    def train(self, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
        """Training images (uint8 [n, 3, H, W], or in files) and class ids (int64 [n]) of these classes, in the order of
        the data."""
        return images_of(self.train_images, self.train_class_ids, class_ids)

    def test(self, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
        """Like `train`, of the test images."""
        return images_of(self.test_images, self.test_class_ids, class_ids)

    def train_counts(self) -> list[int]:
        """Training images of each class."""
        return torch.bincount(self.train_class_ids, minlength=self.num_classes).tolist()

    def limited(self, per_class: int) -> "ImageSource":
        """The same data set with only the first `per_class` training and test images of each class."""
        train, test = (rank_within_class(ids) < per_class for ids in (self.train_class_ids, self.test_class_ids))
        images = {"train_images": self.train_images[train], "test_images": self.test_images[test]}
        class_ids = {"train_class_ids": self.train_class_ids[train], "test_class_ids": self.test_class_ids[test]}
        return replace(self, **images, **class_ids)


def images_of(images: Images, ids: Tensor, class_ids: Sequence[int]) -> tuple[Images, Tensor]:
    chosen = torch.isin(ids, torch.tensor(list(class_ids), dtype=torch.int64))
    return (images, ids) if chosen.all() else (images[chosen], ids[chosen])  # no copy that is not needed


def rank_within_class(labels: Tensor) -> Tensor:
    """int64 [n]: how many earlier entries of `labels` [n] are equal to this one."""
    ordered, order = torch.sort(labels, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels), device=labels.device) - torch.searchsorted(ordered, ordered)
    return ranks
