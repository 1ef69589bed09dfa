"""`python -m mnemonics export RUN DIR`: the exemplars of a run as PNG files, by class, for whatever reads images."""

import argparse
import csv
import dataclasses
import functools
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import plain_batches
from mnemonics.data.cifar import would_download
from mnemonics.data.image_source import ImageSource
from mnemonics.data.images import DataError, usage_errors
from mnemonics.data.sources import load_source
from mnemonics.engine.errors import UsageError, command, printable
from mnemonics.engine.files import atomic_write
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.experiment.stored import Target, own_target, protocol_of

CPU = torch.device("cpu")


def exemplars_of(run: str | Path, phase: int | None = None) -> TensorDataset:
    """The exemplars of a run as a data set, those that are held out of training included.

    Args:
        run: a run folder, or a phase_<i>.pt.
        phase: after which they were stored; the newest by default.
    Returns:
        Images as the run sees them, uint8 [n, 3, h, w], and class ids, int64 [n]: the numbers that the data set gives
        to its classes, as in torchvision. Those of a class are in the order of their importance.
    Raises:
        UsageError: where there is no such run or phase, or no exemplars in it.
    """
    target = own_target(Path(run), argparse.Namespace())
    return as_dataset(target, memory_after(phase, target))


def memory_after(phase: int | None, target: Target) -> ExemplarMemory:
    """What is stored of a phase, by default the newest; raises as `exemplars_of`."""
    index = max(target.files) if phase is None else phase
    if index not in target.files:
        raise UsageError(f"--phase {phase}: {target.path} holds phase {', '.join(map(str, target.files))}")
    memory = target.load(index, target.files[index], CPU).memory
    if not memory:
        raise UsageError(f"{target.files[index]}: holds no exemplars")
    return memory


def as_dataset(target: Target, memory: ExemplarMemory) -> TensorDataset:
    """What `exemplars_of` returns, of a memory of this run."""
    return TensorDataset(memory.data.loaded().images, torch.tensor(target.order)[memory.data.labels])


def training_set(config: ExperimentConfig) -> ImageSource | None:
    """The whole data set of a run; None and a line that says why, where it is not there or would not help."""
    try:
        if config.exemplar_format not in ("raw", "png"):
            raise UsageError(f"--exemplar_format {config.exemplar_format}: no image stays as it is")
        if would_download(config):
            raise UsageError(f"--data_dir {config.data_dir}: there is no {config.dataset}")
        return load_source(dataclasses.replace(config, max_images_per_class=None))
    except UsageError as error:
        print(f"the column origin is empty: {error}")
        return None


def digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()


def origins(images: Tensor, names: Sequence[str], config: ExperimentConfig) -> list[int | str]:
    """Index in the training set of each of the images, the first of its class that has the same pixels; else ""."""
    source = training_set(config)
    if source is None:
        return [""] * len(images)
    wanted = torch.tensor([name in set(names) for name in source.class_names])[source.train_class_ids].nonzero()[:, 0]
    print(f"looking for the exemplars among {len(wanted)} training images", flush=True)
    batches, first = plain_batches(source.train_images[wanted], config.eval_batch_size, CPU), {}
    every = (digest(image) for batch in batches for image in batch)
    for index, class_id, of_image in zip(wanted.tolist(), source.train_class_ids[wanted].tolist(), every, strict=True):
        first.setdefault((source.class_names[class_id], of_image), index)
    return [first.get((name, digest(image)), "") for name, image in zip(names, images, strict=True)]


def folder_names(target: Target) -> list[str]:
    """Of classes, by their ids. Raises UsageError where they are not known, or cannot be folders."""
    names = (target.data or {}).get("class_names")
    if names is None:
        raise UsageError(f"{target.path}: older versions did not store what classes are called")
    for name in names:
        if name != printable(name) or Path(name).name != name or name.startswith("."):
            raise UsageError(f"{target.path}: its class {name!r} cannot be the name of a folder")
    return names


def export(target: Target, memory: ExemplarMemory, out: Path) -> None:
    """Write train/<class>/<number in the data set>.png into the new folder `out`, then exemplars.csv.

    Raises:
        UsageError: where `out` holds something or cannot be written, and as `folder_names`.
    """
    class_names, (images, ids) = folder_names(target), as_dataset(target, memory).tensors
    names, phases = [class_names[i] for i in ids], protocol_of(target, len(target.order)).phase_of_label()
    sizes = [round(len(page.code) / page.count, 2) for page in memory.pages for _ in range(page.count)]
    rows = zip(phases[memory.data.labels.numpy()], sizes or [images[0].numel()] * len(images), strict=True)
    writing = functools.partial(usage_errors, f"DIR {out}", "; name another folder, or remove what is there")
    with writing():
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DataError("is not empty")
    found, table = origins(images, names, target.config), io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("class", "file", "phase", "bytes", "origin"))
    with writing():
        for number, (image, name, row) in enumerate(zip(images, names, rows, strict=True)):
            file = Path("train", name, f"{number:06}.png")
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / file)
            writer.writerow((name, file.as_posix(), *row, found[number]))
        atomic_write(out / "exemplars.csv", table.getvalue().encode())
    real = sum(origin != "" for origin in found)
    print(f"{len(images)} exemplars of {len(set(names))} classes, {real} of them unchanged training images: {out}")


@command("main.py export")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("main.py export", description="Write exemplars as PNG files.", allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder, or a phase_<i>.pt")
    add("out", type=Path, metavar="DIR", help="a new folder, for train/<class>/*.png and exemplars.csv")
    add("--phase", type=int, metavar="K", help="the exemplars after phase K (the newest)")
    add("--data_dir", help="folder of the data set, where the column origin comes from (where the run had it)")
    options = parser.parse_args(arguments)
    target = own_target(options.run, options)
    export(target, memory_after(options.phase, target), options.out)
