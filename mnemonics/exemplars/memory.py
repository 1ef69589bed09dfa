"""What a learner may keep of its old classes, and how much of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.data.files import FileImages
from mnemonics.data.image_source import ImageSource, rank_within_class
from mnemonics.engine.errors import UsageError
from mnemonics.exemplars.codec import RAW, Codec, Coded, Page


@dataclass(frozen=True)
class ExemplarMemory:
    """The exemplars E: uint8 images [n, 3, h, w] with labels int64 [n], those of a class with the most important first.

    What is stored of them are the pages of their codec or, of a raw one, the bytes that real images of that size take,
    optimised or not. Some may be held out of all training, for `Baseline.calibrate`; they count like the others.
    """

    data: LabelledImages  # decoded, large ones when they are used
    held_out: Tensor  # bool [n]
    codec: Codec = RAW
    pages: tuple[Page, ...] = ()  # the images of one after the other are those of `data`; none of raw images

    @staticmethod
    def empty(image_size: int, device: torch.device, codec: Codec = RAW) -> "ExemplarMemory":
        nothing = LabelledImages(
            torch.empty(0, 3, image_size, image_size, dtype=torch.uint8, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
        )
        return ExemplarMemory(nothing, torch.empty(0, dtype=torch.bool, device=device), codec)

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

    @property
    def bytes(self) -> int:
        """What is stored of the images, in bytes."""
        return sum(len(page.code) for page in self.pages) or self.data.images.shape.numel()

    def extended(self, new: LabelledImages, held_out: bool = False, pages: Sequence[Page] = ()) -> "ExemplarMemory":
        """With exemplars of new classes added: what `Codec.coded` gave.

        Raises:
            ValueError: if a class of `new` has such exemplars in the memory already or an image is not uint8.
        """
        if isinstance(new.images, Tensor) and new.images.dtype != torch.uint8:
            raise ValueError(f"exemplars are stored as uint8, not {new.images.dtype}")
        if torch.isin(new.labels, self.data.labels[self.held_out == held_out]).any():
            raise ValueError("the memory already holds exemplars of a class that is to be added")
        mask = torch.full_like(new.labels, held_out, dtype=torch.bool)
        return self.of_pages(self.data.followed_by(new), torch.cat([self.held_out, mask]), (*self.pages, *pages))

    def with_images(self, images: Tensor) -> "ExemplarMemory":
        """With other pixels for those in `training`, raw images: uint8 of the same shape."""
        if images.dtype != torch.uint8 or images.shape != self.training.images.shape:
            raise ValueError(f"expected uint8 images of shape {tuple(self.training.images.shape)}")
        everything = self.data.images.clone()
        everything[~self.held_out] = images
        return ExemplarMemory(LabelledImages(everything, self.data.labels), self.held_out, self.codec)

    def shrunk_to(self, per_class: int, held_out: int = 0) -> "ExemplarMemory":
        """Keep the first `per_class` exemplars of each class and the first `held_out` of those held out, or as many
        bytes if the codec counts them. Of coded exemplars, whole pages are kept or dropped."""
        groups, spent = 2 * self.data.labels + self.held_out, Counter()
        place = rank_within_class(groups) + 1
        counts = [page.count for page in self.pages] or len(place)  # without pages there is nothing to go through
        for page, rows, ends in zip(self.pages, groups.split(counts), place.split(counts), strict=False):
            spent[int(rows[0])] += self.codec.cost(page)
            ends.fill_(spent[int(rows[0])])
        kept = place <= torch.where(self.held_out, held_out, per_class)
        pages = [page for page, part in zip(self.pages, kept.split(counts), strict=False) if part[0]]
        return self.of_pages(self.data[kept], self.held_out[kept], tuple(pages))

    def of_pages(self, data: LabelledImages, held_out: Tensor, pages: tuple[Page, ...]) -> "ExemplarMemory":
        """Exemplars of the same codec. What is decoded when it is used refers to these pages alone."""
        if isinstance(data.images, FileImages):
            data = LabelledImages(self.codec.images_of(pages), data.labels)
        return ExemplarMemory(data, held_out, self.codec, pages)


def class_quota(config: ExperimentConfig, counts: list[int], codec: Codec = RAW) -> int:
    """What each class may keep, in images or, if `codec` counts them, in bytes: --nb_protos or --exemplar_bytes, or an
    equal share of --total_memory or --total_bytes among the classes seen. Raw images are counted in any case.

    Of a total of images, a class with fewer keeps what it has, and leaves the rest of its share to the others.

    Args:
        counts: training images of each class seen so far.
    """
    if config.nb_protos is not None:
        return config.nb_protos
    amount = config.total_memory
    if amount is None:
        amount = (config.exemplar_bytes or config.total_bytes) // (1 if codec.by_bytes else 3 * codec.size**2)
    if config.exemplar_bytes:
        return amount
    if codec.by_bytes:
        return amount // len(counts)
    left = amount
    for position, count in enumerate(sorted(counts)):
        share = left // (len(counts) - position)
        if count >= share:
            return share
        left -= count
    return max(counts)


def check_budget(config: ExperimentConfig, source: ImageSource, codec: Codec, held_out: Callable[[int], int]) -> str:
    """A notice where classes have fewer images than exemplars are asked for, else an empty text.

    Args:
        held_out: `Baseline.held_out`.
    Raises:
        UsageError: where the budget is less than one exemplar for each class, or what is held out of it is.
    """
    if config.total_memory is not None and config.total_memory < source.num_classes:
        raise UsageError(f"--total_memory {config.total_memory}: {source.num_classes} or more, one for each class")
    counts = source.train_counts()
    quota = class_quota(config, counts, codec)
    if config.exemplar_bytes or config.total_bytes:
        first = source.limited(1)
        images = LabelledImages(first.train_images, first.train_class_ids)
        for limit in {quota - held_out(quota), held_out(quota) or quota}:
            stored(config, codec, images, [limit], source.class_names)
    small = [name for name, count in zip(source.class_names, counts, strict=True) if count < quota]
    if not small or codec.by_bytes:
        return ""
    return f"{len(small)} classes, {small[0]!r} for example, have fewer than {quota} training images: all are kept"


def stored(
    config: ExperimentConfig, codec: Codec, images: LabelledImages, limits: list[int], names: Sequence[str]
) -> Coded:
    """`images` as they are stored, those that fit; see `Codec.coded`. Raises UsageError if none of a class does."""
    coded = codec.coded(images, limits)
    if missing := set(images.labels.tolist()) - set(coded.data.labels.tolist()):
        flag = "exemplar_bytes" if config.exemplar_bytes else "total_bytes"
        share = "a tenth of a class's share, which bic holds out," if config.baseline == "bic" else "a class's share"
        less = f"{share} is less than one image of class {names[min(missing)]!r} as {config.exemplar_format}"
        other = "a lower quality" if codec.quality else "--exemplar_format avif:80"
        raise UsageError(f"--{flag} {getattr(config, flag)}: {less}; more would work, or {other}")
    return coded
