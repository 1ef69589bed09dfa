"""Batches: of images held in memory as uint8 on the device, or streamed from files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnemonics.data.augment import CropAndMirror, Crops, normalise
from mnemonics.data.files import FileImages, decoded
from mnemonics.data.image_source import ImageSource, rank_within_class
from mnemonics.engine.distributed import own_rows, world


@dataclass(frozen=True)
class Preprocessing:
    """How images of a data set become network input, on one device."""

    mean: Tensor  # float32 [3], of images in [0, 1]
    std: Tensor  # float32 [3]
    crop_padding: int
    mirror: bool

    @staticmethod
    def of(source: ImageSource, device: torch.device) -> "Preprocessing":
        mean, std = (torch.tensor(values, device=device) for values in (source.mean, source.std))
        return Preprocessing(mean, std, source.crop_padding, source.mirror)

    def plain(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> network input float32 [n, 3, h, w], channels-last."""
        return normalise(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, crops: Crops) -> Tensor:
        """Like `plain`, after cropping and mirroring."""
        return normalise(CropAndMirror(self.crop_padding, self.mirror).apply(images, *crops), self.mean, self.std)

    def crop_and_mirror(self) -> CropAndMirror:
        """The augmentation of `augmented` for images that are network input already."""
        black, _ = self.valid_range()
        return CropAndMirror(self.crop_padding, self.mirror, black)

    def valid_range(self) -> tuple[Tensor, Tensor]:
        """Network input of a black and of a white pixel, float32 [3, 1, 1] each."""
        black, white = torch.zeros_like(self.mean), torch.ones_like(self.mean)
        return tuple(((edge - self.mean) / self.std)[:, None, None] for edge in (black, white))


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels int64 [n] (positions in the class order) on one device. The images are pixels uint8
    [n, 3, h, w], in memory or in files, or network input float [n, ...]."""

    images: Tensor | FileImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "LabelledImages":
        return LabelledImages(self.images[index], self.labels[index])

    def loaded(self) -> "LabelledImages":
        """The same with images in memory, on the device of the labels."""
        if isinstance(self.images, Tensor):
            return self
        return LabelledImages(self.images.loaded().to(self.labels.device), self.labels)

    def chooser(self) -> Callable[[Tensor], "LabelledImages"]:
        """int64 [m] -> those images, in memory; for many calls."""
        if isinstance(self.images, Tensor):
            return self.__getitem__
        chosen, device = self.images.by_workers(), self.labels.device
        return lambda index: LabelledImages(chosen(index).to(device), self.labels[index])

    def followed_by(self, other: "LabelledImages") -> "LabelledImages":
        """These images followed by those of `other`."""
        if len(self) == 0 or len(other) == 0:
            return self if len(other) == 0 else other
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, Tensor):
            return LabelledImages(torch.cat([self.images, other.images]), labels)
        return LabelledImages(self.images.followed_by(other.images), labels)


def batch_sizes(images: int, batch_size: int, last_batch: str) -> list[int]:
    """How many images each batch of an epoch has. `last_batch` says what becomes of the rest: "join" makes it part of
    the batch before if it is smaller than half a batch, "keep" leaves it as it is, "drop" leaves it out.

    A single image always joins, and all images are a batch where there are fewer than one: with the statistics of one
    image, BatchNorm can make nothing of a feature map of one pixel.
    """
    whole, rest = divmod(images, batch_size)
    sizes = [batch_size] * whole
    if rest and (not whole or (last_batch == "keep" and rest > 1) or (last_batch == "join" and 2 * rest >= batch_size)):
        return [*sizes, rest]
    if rest and last_batch != "drop":
        sizes[-1] += rest
    return sizes


class Batches:
    """What batches of images in memory and in files share: `share` of the first images of `data`, drawn anew in each
    epoch, are shown as in `recoded` (the first m images, [m, 3, h, w]), if that is given."""

    def __init__(
        self, data: LabelledImages, prep: Preprocessing, recoded: Tensor | FileImages | None = None, share: float = 0.0
    ):
        self.images, self.prep, self.share = len(data), prep, share
        self.recoded = 0 if recoded is None else len(recoded)
        self.data = data.followed_by(LabelledImages(recoded, data.labels[: self.recoded])) if self.recoded else data

    def shown(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of `data`, int64 [n]: for each image (int64 [n]) which version of it is shown."""
        if not self.recoded:
            return order
        drawn = torch.rand(len(order), generator=generator, device=order.device) < self.share
        return torch.where(drawn & (order < self.recoded), order + self.images, order)


class ResidentBatches(Batches):
    """Training batches of images in memory: a batch is its random draws, the images are cut where they are used."""

    def epoch(self, sizes: list[int], generator: torch.Generator, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """For each batch, from number `first` on, the indices int64 [size] and its `Crops`. No image comes twice, all
        in random order. All is drawn at once, in a few operations."""
        order = torch.randperm(self.images, generator=generator, device=generator.device)
        crops = self.prep.crop_and_mirror().draw(self.images, generator)
        draws = (self.shown(order, generator), *crops)
        yield from zip(*(draw[: sum(sizes)].split(sizes)[first:] for draw in draws), strict=True)

    def network_input(self, index: Tensor, *crops: Tensor) -> tuple[Tensor, Tensor]:
        """(network input float32 [b, 3, h, w], labels int64 [b]) of a batch of `epoch`. On several processes the images
        are those of this process's share."""
        mine = own_rows()
        images = self.prep.augmented(self.data.images[index[mine]], Crops(*(crop[mine] for crop in crops)))
        return images, self.data.labels[index]


class StreamedBatches(Batches):
    """Training batches of images in files: decoded and cut by workers, a few batches ahead."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.draws: list[tuple] = []  # of an epoch: other ones each time, while the workers stay
        self.loader = self.data.images.loader(self.draws, persistent=True)

    def epoch(self, sizes: list[int], generator: torch.Generator, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """For each batch, from number `first` on, the images uint8 [size, 3, h, w] and the labels int64 [size], on the
        device. As for images in memory no image comes twice. On several processes the images are those of this
        process's share, and no others are read. Raises UsageError for a file that is no image."""
        labels, n = self.data.labels, self.images
        order = torch.randperm(n, generator=generator, device=generator.device)
        seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device)
        order, seeds = self.shown(order, generator)[: sum(sizes)], seeds[: sum(sizes)]
        mine = [[part[own_rows()].numpy() for part in draw.cpu().split(sizes)] for draw in (order, seeds)]
        self.draws[:] = list(zip(*mine, strict=True))[first:]
        for images, index in zip(decoded(self.loader), order.split(sizes)[first:], strict=True):
            yield images.to(labels.device, non_blocking=True), labels[index]

    def network_input(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(network input float32 [b, 3, h, w] of this process's share, labels int64 [b]) of a batch of `epoch`."""
        return self.prep.plain(images), labels


TrainingBatches = ResidentBatches | StreamedBatches


def training_batches(
    data: LabelledImages, prep: Preprocessing, recoded: Tensor | FileImages | None = None, share: float = 0.0
) -> TrainingBatches:
    """Augmented batches of `data`, wherever it is; see `Batches`."""
    return (ResidentBatches if isinstance(data.images, Tensor) else StreamedBatches)(data, prep, recoded, share)


def plain_batches(images: Tensor | FileImages, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """uint8 [<= batch_size, 3, h, w] on `device`, in order, not augmented. On several processes, this process's share
    of as many images for each of them."""
    size = batch_size * world()
    if isinstance(images, Tensor):
        batches = (batch[own_rows()] for batch in images.split(size))
    else:
        batches = images.plain_batches(size, own_rows())
    for batch in batches:
        yield batch.to(device, non_blocking=True)


def balanced_batches(labels: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` minibatches in which classes with as many images are equally frequent: their counts differ by
    two at most, as turns may be cut at both ends of a batch.

    The images are passed through again and again: in each pass every image comes once, in random order within its
    class, the classes taking turns in random order. With fewer images than `batch_size` each batch is one pass.

    Args:
        labels: int64 [n], on the device of `generator`.
    Yields:
        int64 [min(batch_size, n)], all of the same size.
    """
    size = min(batch_size, len(labels))
    queue = labels.new_empty(0)
    for _ in range(steps):
        if len(queue) < size:
            shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
            turns = torch.argsort(rank_within_class(labels[shuffled]), stable=True)
            queue = torch.cat([queue, shuffled[turns]])
        yield queue[:size]
        queue = queue[size:]
