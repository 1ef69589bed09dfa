"""Images in files, for data sets that do not fit in memory: chosen and joined like tensors, decoded only when used.

Worker processes decode and cut, ahead of the training. Random cuts are drawn by the caller, a seed per image, so that
neither the number of workers nor their speed changes a result.
"""

import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from mnemonics.config.fields import LARGEST_SMALL_IMAGE, ExperimentConfig
from mnemonics.data.images import DataError, check_strip, read_rgb
from mnemonics.engine.distributed import local_world
from mnemonics.engine.errors import UsageError

SHARED_MEMORY = Path("/dev/shm")
LOADING_BATCH = 16  # images that a worker decodes at a time where all of them go into one tensor
WORKER_SECONDS = 10  # how long a worker process outlives SIGTERM
LOST_WORKER = ("DataLoader worker (pid", "Too many open files", "can't start new thread", "received 0 items of")


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays gives no single truth value
class FileImages:
    """n images: of files and, after them, stored ones (exemplars). Decoded they are uint8 [.., 3, size, size].

    A file is shown plain (short side resized to 8/7 of the size for large images, to the size itself for small ones;
    then the centre is cut out) or, in training, with a random cut: resized crops of large images (torchvision's
    RandomResizedCrop), shifts by up to an eighth of small ones; mirrored half of the time. Stored ones have their size.
    """

    root: Path
    names: np.ndarray  # bytes [files], paths below root; one block, which worker processes share
    rows: Tensor  # int64 [n]: numbers of files; from len(names) on, of stored images
    stored: Tensor | Dataset  # of images uint8 [3, size, size], in memory or made when they are used
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

    @staticmethod
    def without_files(stored: Tensor | Dataset, size: int, workers: int) -> "FileImages":
        """Stored images alone."""
        return FileImages(Path(), np.array([], dtype=bytes), torch.arange(len(stored)), stored, size, workers)

    def followed_by(self, other: "FileImages | Tensor") -> "FileImages":
        """These followed by `other`: files of the same folder, or stored images; uint8 [k, 3, size, size] is such."""
        if isinstance(other, Tensor):
            other = self.without_files(other.cpu(), self.size, 0)
        if other.names is self.names and not len(other.stored):
            return dataclasses.replace(self, rows=torch.cat([self.rows, other.rows]))
        if len(other.names):
            raise ValueError("images of two folders, or files after stored images, cannot be joined")
        rows = torch.cat([self.rows, other.rows + len(self.names) + len(self.stored)])
        return dataclasses.replace(self, stored=ConcatDataset([self.stored, other.stored]), rows=rows)

    def to(self, device: torch.device) -> "FileImages":
        """As they are: files stay files; their batches go to a device."""
        return self

    def loaded(self) -> Tensor:
        """All of them, plain: uint8 [n, 3, size, size] in memory."""
        return torch.cat([self.none(), *self.plain_batches(LOADING_BATCH)])

    def none(self) -> Tensor:
        """uint8 [0, 3, size, size]"""
        return torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def plain_batches(self, batch_size: int, rows: slice = slice(None)) -> Iterator[Tensor]:
        """uint8 [<= batch_size, 3, size, size], in order, without random cuts: of each batch these `rows`, all by
        default. Raises UsageError for a bad file."""
        index = np.split(np.arange(len(self)), range(batch_size, len(self), batch_size)) if len(self) else ()
        yield from decoded(self.loader([(batch[rows], None) for batch in index]))

    def by_workers(self) -> Callable[[Tensor], Tensor]:
        """int64 [m] on any device -> uint8 [m, 3, size, size]: those images, plain. The workers stay for more."""
        draws: list[tuple[np.ndarray, None]] = []
        loader = self.loader(draws, persistent=True)

        def chosen(index: Tensor) -> Tensor:
            draws[:] = [(batch.numpy(), None) for batch in index.cpu().split(LOADING_BATCH) if len(batch)]
            return torch.cat([self.none(), *decoded(loader)])

        return chosen

    def loader(self, draws: Iterable[tuple[np.ndarray, np.ndarray | None]], persistent: bool = False) -> DataLoader:
        """Batches of the images `index` (int64 [b]), cut at random by `seeds` (int64 [b]) where they are not None, for
        each (index, seeds) of `draws`, which is gone through again each time the loader is (arrays: each tensor would
        reach a worker through shared memory). With `persistent`, the workers stay for the next time. An image that
        cannot be read makes the batch a string.
        """
        workers = self.workers
        return DataLoader(
            Decoder(self),
            batch_size=None,
            sampler=draws,
            num_workers=workers,
            pin_memory=torch.cuda.is_initialized(),  # not for a run on a CPU beside a GPU
            worker_init_fn=outlive_signals,
            persistent_workers=persistent and workers > 0,
        )


def workers_of(config: ExperimentConfig) -> int:
    """--num_workers, or as many as there are cores for each process on this machine, at most 16."""
    cores = min(max((os.cpu_count() or 1) // local_world(), 1), 16)
    return cores if config.num_workers is None else config.num_workers


def check_shared_memory(images: FileImages, batch_size: int) -> None:
    """Raises UsageError where worker processes could not hand over their batches: PyTorch would wait for ever, or lose
    a worker. Each of them prepares two batches in shared memory."""
    needed = images.workers * 2 * batch_size * 3 * images.size**2
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free < needed:
        raise UsageError(
            f"--num_workers {images.workers}: {SHARED_MEMORY} has {free / 2**20:.1f} of {needed / 2**20:.1f} MiB that "
            "they need; in a container give it more (docker run --shm-size 8g), or take fewer, or --num_workers 0"
        )


def short_side(size: int) -> int:
    """What the short side of an image becomes before its centre of `size` pixels is cut out, pixels."""
    return round(size * 8 / 7) if size > LARGEST_SMALL_IMAGE else size


class Decoder(Dataset):
    """What a worker does: (index int64 [b], seeds int64 [b] or None) -> uint8 [b, 3, size, size], or what is wrong."""

    def __init__(self, images: FileImages):
        self.images = images
        self.short_side = short_side(images.size)

    def __getitem__(self, draw: tuple[np.ndarray, np.ndarray | None]) -> Tensor | str:
        index, seeds = draw
        try:
            rows = self.images.rows[index].tolist()
            shown = map(self.plain, rows) if seeds is None else map(self.cut, rows, seeds.tolist())
            return torch.stack(list(shown)) if len(index) else self.images.none()
        except DataError as error:  # a string, because an exception would arrive with the worker's traceback in it
            return str(error)

    @cached_property
    def transforms(self) -> tuple:
        """torchvision's transforms of images to uint8 [3, size, size]: (plain, random cut)."""
        from torchvision.transforms import v2  # here: importing it takes a second and 150 MB

        size = self.images.size
        plain = [v2.Resize(self.short_side), v2.CenterCrop(size)]
        if size > LARGEST_SMALL_IMAGE:
            cut = [v2.RandomResizedCrop(size)]
        else:
            cut = [*plain, v2.RandomCrop(size, padding=size // 8)]
        return v2.Compose([*plain, v2.PILToTensor()]), v2.Compose([*cut, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def plain(self, row: int) -> Tensor:
        """uint8 [3, size, size]: the centre of a file's image, a stored one as it is."""
        image = self.image(row)
        return image if isinstance(image, Tensor) else self.transforms[0](image)

    def cut(self, row: int, seed: int) -> Tensor:
        """uint8 [3, size, size], by torchvision's draws from `seed`."""
        image, (_, cut) = self.image(row), self.transforms
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cut(image)

    def image(self, row: int) -> Tensor | Image.Image:
        """A stored image, uint8 [3, size, size], or that of a file, RGB. Raises DataError."""
        files = len(self.images.names)
        if row >= files:
            return self.images.stored[row - files]
        try:
            return self.of_file(row)
        except DataError as error:
            raise DataError(f"--data_dir: {error}") from error

    def of_file(self, row: int) -> Image.Image:
        """The image of a file, RGB. Raises DataError, naming the file."""
        path = self.images.root / os.fsdecode(self.images.names[row])
        image = read_rgb(path)
        check_strip(image.size, self.short_side, path)
        return image


def read_images(paths: Sequence[Path], size: int, change: Callable[[Image.Image], Image.Image] | None) -> Tensor:
    """uint8 [n, 3, size, size]: images of files anywhere, changed and then plain. Raises DataError."""
    names, none = np.array([os.fsencode(path) for path in paths]), torch.empty(0, 3, size, size, dtype=torch.uint8)
    decoder = Decoder(FileImages(Path(), names, torch.arange(len(paths)), none, size, workers=0))
    images = map(decoder.of_file, range(len(paths)))
    return torch.stack([decoder.transforms[0](change(image) if change else image) for image in images])


def outlive_signals(worker: int) -> None:
    """Signals of a terminal or a job scheduler go to all processes at once. The main one still needs its workers until
    it has written a checkpoint: they ignore Ctrl-C, and end a while after SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))


def decoded(batches: DataLoader) -> Iterator[Tensor]:
    """The batches of a loader. Raises UsageError where one holds an image that cannot be read, and where a worker
    process is lost: that happens again to whoever starts the same command again."""
    heed = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(batches)
        if threading.current_thread() is threading.main_thread():
            # PyTorch has set a handler that raises wherever the main process is, when a worker dies. Here, where it
            # waits for a batch, it notices all the same, after five seconds at most.
            signal.signal(signal.SIGCHLD, heed or signal.SIG_DFL)
        for batch in iterator:
            if isinstance(batch, str):
                raise UsageError(batch)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        raise lost_worker(error, batches.num_workers) from None


def lost_worker(error: Exception, workers: int) -> Exception:
    """What to raise for an error of a loader: a UsageError where a worker process was killed, could not be started or
    cannot be talked to, and the error itself where it is anything else."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, OSError | EOFError) and not reason.startswith(LOST_WORKER):
        return error
    return UsageError(
        f"--num_workers {workers}: a process that decodes images was lost ({reason}); most often memory is short: "
        "fewer of them need less, --num_workers 0 none"
    )
