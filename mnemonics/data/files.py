"""Images in files, for data sets that do not fit in memory: chosen and joined like tensors, decoded only when used.

Worker processes decode and cut, ahead of the training. Random cuts are drawn by the caller, a seed per image, so that
neither the number of workers nor their speed changes a result.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnemonics.config import LARGEST_SMALL_IMAGE, UsageError

LOADING_BATCH = 16  # images that a worker decodes at a time where all of them go into one tensor


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays gives no single truth value
class FileImages:
    """n images: of files and, in memory, of exemplars. Decoded they are uint8 [.., 3, size, size].

    A file is shown plain (short side resized to 8/7 of the size for large images, to the size itself for small ones;
    then the centre is cut out) or, in training, with a random cut: resized crops of large images (torchvision's
    RandomResizedCrop), shifts by up to an eighth of small ones; mirrored half of the time. Exemplars have their size.
    """

    root: Path
    names: np.ndarray  # bytes [files], paths below root; one block, which worker processes share
    rows: Tensor  # int64 [n]: numbers of files; from len(names) on, of stored images
    stored: Tensor  # uint8 [m, 3, size, size]
    size: int  # height and width in pixels
    workers: int  # processes that decode; 0: this one

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> "FileImages":
        """Those of an index (int64 or bool tensor on any device, or slice)."""
        index = index.cpu() if isinstance(index, Tensor) else index
        return dataclasses.replace(self, rows=self.rows[index])

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that they would be: [n, 3, size, size]."""
        return torch.Size((len(self), 3, self.size, self.size))

    def and_also(self, other: "FileImages | Tensor") -> "FileImages":
        """These followed by `other`: of the same folder, or uint8 [k, 3, size, size] in memory."""
        if isinstance(other, Tensor):
            first = len(self.names) + len(self.stored)
            stored, rows = torch.cat([self.stored, other.cpu()]), torch.arange(first, first + len(other))
        else:
            stored, rows = self.stored, other.rows
            if other.names is not self.names or len(other.stored):
                raise ValueError("images of two folders, or with two sets of exemplars, cannot be joined")
        return dataclasses.replace(self, stored=stored, rows=torch.cat([self.rows, rows]))

    def to(self, device: torch.device) -> "FileImages":
        """As they are: files stay files; their batches go to a device."""
        return self

    def loaded(self) -> Tensor:
        """All of them, plain: uint8 [n, 3, size, size] in memory."""
        return torch.cat([self.stored[:0], *self.plain_batches(LOADING_BATCH)])

    def plain_batches(self, batch_size: int, rows: slice = slice(None)) -> Iterator[Tensor]:
        """uint8 [<= batch_size, 3, size, size], in order, without random cuts: of each batch these `rows`, all by
        default. Raises UsageError for a bad file."""
        index = torch.arange(len(self)).split(batch_size) if len(self) else ()
        yield from decoded(self.loader([(batch[rows], None) for batch in index]))

    def loader(self, draws: Iterable[tuple[Tensor, Tensor | None]], persistent: bool = False) -> DataLoader:
        """Batches of the images `index` (int64 [b]), cut at random by `seeds` (int64 [b]) where they are not None, for
        each (index, seeds) of `draws`, which is gone through again each time the loader is.

        With `persistent`, the workers stay for the next time. An image that cannot be read makes the batch a string.
        """
        workers = self.workers
        return DataLoader(
            Decoder(self),
            batch_size=None,
            sampler=draws,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent and workers > 0,
        )

    def fingerprint(self) -> bytes:
        """SHA-256 of what is in them, as far as it can be told without reading: names and sizes of the files, and the
        pixels of exemplars."""
        digest = hashlib.sha256(self.stored.numpy().tobytes())
        for row in self.rows.tolist():
            name = self.names[row] if row < len(self.names) else b""
            size = (self.root / os.fsdecode(name)).stat().st_size if name else row - len(self.names)
            digest.update(name + b"\0" + str(size).encode() + b"\n")
        return digest.digest()


class Decoder(Dataset):
    """What a worker does: (index int64 [b], seeds int64 [b] or None) -> uint8 [b, 3, size, size], or what is wrong."""

    def __init__(self, images: FileImages):
        self.images = images

    def __getitem__(self, draw: tuple[Tensor, Tensor | None]) -> Tensor | str:
        index, seeds = draw
        try:
            rows = self.images.rows[index].tolist()
            shown = map(self.plain, rows) if seeds is None else map(self.cut, rows, seeds.tolist())
            return torch.stack(list(shown)) if len(index) else self.images.stored[:0]
        except OSError as error:  # a string, because an exception would arrive with the worker's traceback in it
            return str(error)

    @cached_property
    def transforms(self) -> tuple:
        """torchvision's transforms of images: (plain, random cut)."""
        # imported here because torchvision takes 140 MB and a second that images in memory need not spend
        from torchvision.transforms import v2

        size = self.images.size
        large = size > LARGEST_SMALL_IMAGE
        plain = v2.Compose([v2.Resize(round(size * 8 / 7) if large else size), v2.CenterCrop(size)])
        if large:
            cut = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        else:
            cut = v2.Compose([plain, v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()])
        return plain, cut

    def plain(self, row: int) -> Tensor:
        """uint8 [3, size, size]."""
        if row >= len(self.images.names):
            return self.images.stored[row - len(self.images.names)]
        plain, _ = self.transforms
        return pixels(plain(self.opened(row)))

    def cut(self, row: int, seed: int) -> Tensor:
        """uint8 [3, size, size], by torchvision's draws from `seed`."""
        in_memory = row >= len(self.images.names)
        image = self.images.stored[row - len(self.images.names)] if in_memory else self.opened(row)
        _, cut = self.transforms
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return pixels(cut(image))

    def opened(self, row: int):
        """The image of a file, RGB. Raises OSError, naming the file."""
        from torchvision.datasets.folder import pil_loader

        path = self.images.root / os.fsdecode(self.images.names[row])
        try:
            return pil_loader(str(path))
        except Exception as error:  # what Pillow's decoders raise for damaged files is no closed list
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{path} cannot be read as an image ({reason})") from error


def pixels(image) -> Tensor:
    """uint8 [3, h, w] of a PIL image; a tensor stays as it is."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def decoded(batches: Iterable[Tensor | str]) -> Iterator[Tensor]:
    """The batches of a loader. Raises UsageError where one holds an image that cannot be read."""
    for batch in batches:
        if isinstance(batch, str):
            raise UsageError(f"--data_dir: {batch}; mend or remove this file")
        yield batch
