"""How exemplars become bytes and pixels again (--exemplar_format), by Pillow.

Small images of a class are coded in pages, mosaics of up to 64 in the order in which they were chosen, large ones one
by one (sizes: docs/memory.md); those are decoded where they are used, by worker processes. What was decoded is never
coded again, which would lose more each time.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mnemonics.config.fields import LARGEST, LARGEST_SMALL_IMAGE, ExperimentConfig
from mnemonics.data.batches import LabelledImages
from mnemonics.data.files import Decoder, FileImages, workers_of
from mnemonics.data.images import DataError
from mnemonics.engine.errors import UsageError

PAGE, COLUMNS = 64, 8  # small images in a page and in a row of it
FORMAT = re.compile(r"raw|png|(webp|jpeg|avif):([1-9][0-9]?|100)")
OPTIONS = {  # of Pillow, beside the quality; colours have the resolution of the image (WebP always halves it)
    "png": {"optimize": True},
    "webp": {"method": 6},
    "jpeg": {"subsampling": "4:4:4", "optimize": True},
    "avif": {"subsampling": "4:4:4", "max_threads": 1},
}


class Page(NamedTuple):
    """A coded mosaic of `count` images of a class, row by row."""

    code: bytes
    count: int


class Coded(NamedTuple):
    """Images as they are stored."""

    data: LabelledImages  # decoded, large ones when they are used: what all later steps see
    pages: tuple[Page, ...]  # the images of one after the other are those of `data`; none of raw images
    kept: Tensor  # int64 [n]: which of the images that were to be coded they are
    psnr: float | None = None  # of their decoded pixels, in dB; None where no pixel has changed


@dataclass(frozen=True)
class Codec:
    """A way to store images of one size. Coding and decoding are deterministic."""

    format: str = "raw"  # or a key of OPTIONS
    quality: int | None = None
    size: int = 0  # height and width of an image in pixels
    by_bytes: bool = False  # whether what a class may keep is counted in bytes of its pages, not in images
    workers: int = 0  # processes that decode large images

    @staticmethod
    def of(config: ExperimentConfig, size: int = 0) -> "Codec":
        """That of --exemplar_format, for images of `size` x `size` pixels. Raises UsageError if there is none."""
        flag, match = f"--exemplar_format {config.exemplar_format}", FORMAT.fullmatch(config.exemplar_format)
        if match is None:
            raise UsageError(f"{flag}: raw, png, or webp:Q, jpeg:Q or avif:Q with a quality Q from 1 to 100")
        if match[0] == "raw":
            return Codec(size=size)
        name, quality = match[1] or match[0], int(match[2]) if match[2] else None
        Image.init()
        if name.upper() not in Image.SAVE:
            raise UsageError(f"{flag}: Pillow {PIL.__version__} as it is installed lacks it; png or jpeg:Q would work")
        return Codec(name, quality, size, bool(config.exemplar_bytes or config.total_bytes), workers_of(config))

    @property
    def is_small(self) -> bool:
        return self.size <= LARGEST_SMALL_IMAGE

    def coded(self, images: LabelledImages, limits: Sequence[int] = (LARGEST,)) -> Coded:
        """`images`, of each class the first ones that fit, class by class; raw ones all, or none for a limit of 0.

        Args:
            limits: what a class may keep in later phases and now, ascending, in images or (`by_bytes`) in bytes. Pages
                end where a limit does, so that they can be dropped whole. Images before the first one that fits
                into the first limit are left out.
        """
        if self.format == "raw":
            kept = torch.arange(len(images) if limits[-1] else 0, device=images.labels.device)
            return Coded(images[: len(kept)].loaded(), (), kept)
        kept, pages, error = [images.labels[:0]], [], 0.0
        for label in images.labels.unique():
            members = (images.labels == label).nonzero().flatten()
            plain = images[members].loaded().images.cpu()
            too_large = self.too_large(plain, limits[0])
            members, plain = members[too_large:], plain[too_large:]
            pages += (of_class := self.pages(plain, limits))
            shown = torch.cat([plain[:0], *map(self.decoded, of_class)])
            error += (shown.double() - plain[: len(shown)]).square().sum().item()
            kept.append(members[: len(shown)])
        index, stored = torch.cat(kept), self.images_of(pages)
        psnr = round(10 * math.log10(255**2 * stored.shape.numel() / error), 2) if error else None
        return Coded(LabelledImages(stored.to(index.device), images.labels[index]), tuple(pages), index, psnr)

    def recoded(self, images: LabelledImages) -> Tensor | FileImages:
        """What `images` look like after coding and decoding, in their order: uint8 [n, 3, h, w], but large ones of
        files when they are used."""
        if not self.is_small and isinstance(images.images, FileImages):
            return FileImages.without_files(RecodedImages(self, images.images), self.size, self.workers)
        coded = self.coded(images)
        return coded.data.loaded().images[torch.argsort(coded.kept)]

    def images_of(self, pages: Sequence[Page]) -> Tensor | FileImages:
        """The images of pages, one after the other: small ones decoded, uint8 [n, 3, h, w], large ones when they are
        used. Raises DataError for a page that cannot be decoded."""
        if self.is_small:
            none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
            return torch.cat([none, *map(self.decoded, pages)])
        return FileImages.without_files(CodedImages(self, tuple(pages)), self.size, self.workers)

    def cost(self, page: Page) -> int:
        """What a page takes of a limit."""
        return len(page.code) if self.by_bytes else page.count

    def pages(self, images: Tensor, limits: Sequence[int]) -> list[Page]:
        """The first images (uint8 [n, 3, h, w]) of a class, as many as fit; see `coded`."""
        pages, first, spent = [], 0, 0
        in_page = PAGE if self.is_small else 1
        for limit in limits:
            likely = math.ceil(2 * first * (limit - spent) / spent) if spent else PAGE  # saves coding far too many
            while page := self.fullest(images[first:][: min(in_page, likely)], limit - spent):
                pages.append(page)
                first, spent = first + page.count, spent + self.cost(page)
            if not pages:
                break
        return pages

    def too_large(self, images: Tensor, room: int) -> int:
        """How many images, uint8 [n, 3, h, w], come before the first one that has room."""
        fits = (not self.by_bytes or self.cost(self.page(image[None])) <= room for image in images)
        return next((number for number, one in enumerate(fits) if one), len(images))

    def fullest(self, images: Tensor, room: int) -> Page | None:
        """The page of as many of these images, from the first one on, as have room; None if not one has."""
        count = len(images) if self.by_bytes else min(len(images), room)
        while count > 0:
            page = self.page(images[:count])
            if self.cost(page) <= room:
                return page
            count = min(count - 1, count * room // self.cost(page))  # rather too many: there is a header
        return None

    def page(self, images: Tensor) -> Page:
        """Code a mosaic of images, uint8 [n, 3, h, w]."""
        columns = min(COLUMNS, len(images))
        rows = math.ceil(len(images) / columns)
        tiles = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
        mosaic = tiles.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (h, w, 3)
        quality = {} if self.quality is None else {"quality": self.quality}
        Image.fromarray(mosaic.numpy()).save(file := io.BytesIO(), self.format, **OPTIONS[self.format], **quality)
        return Page(file.getvalue(), len(images))

    def decoded(self, page: Page) -> Tensor:
        """The images of a page, uint8 [n, 3, h, w]. Raises DataError for one that cannot be decoded."""
        try:
            with Image.open(io.BytesIO(page.code), formats=[self.format]) as image:
                mosaic = torch.from_numpy(np.array(image.convert("RGB")))
            tiles = mosaic.unflatten(1, (-1, self.size)).unflatten(0, (-1, self.size)).permute(0, 2, 4, 1, 3)
            images = tiles.flatten(0, 1)[: page.count].contiguous()
            if not len(images) == page.count > 0:
                raise ValueError(f"{len(images)} images instead of {page.count}")
        except Exception as error:  # what Pillow's decoders raise for damaged pages is no closed list
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"a page of exemplars cannot be decoded ({reason})") from error
        return images


@dataclass(frozen=True)
class CodedImages(Dataset):
    """Large images, decoded when they are used: uint8 [3, h, w] each."""

    codec: Codec
    pages: tuple[Page, ...]  # of one image each

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> Tensor:
        """Raises DataError."""
        return self.codec.decoded(self.pages[index])[0]


@dataclass(frozen=True)
class RecodedImages(Dataset):
    """Large images of files, coded and decoded when they are used: uint8 [3, h, w] each."""

    codec: Codec
    images: FileImages

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Raises DataError."""
        plain = Decoder(self.images).plain(int(self.images.rows[index]))
        return self.codec.decoded(self.codec.page(plain[None]))[0]


RAW = Codec()
