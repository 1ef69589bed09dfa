"""Checkpoints of the authors' code: folders <name>/run_<r>_iteration_<k>_model.pth, k counting groups of classes."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.stored import FIXED, Loaded, Target, with_flags
from mnemonics.legacy.checkpoints import read_order
from mnemonics.legacy.networks import read_network

DATASETS = {"cifar100": 100, "imagenet_sub": 100, "imagenet": 1000}  # name, which is ours too -> classes
FOLDER_NAME = re.compile(r"(cifar100|imagenet_sub|imagenet)_nfg(\d+)_ncls(\d+)_nproto(\d+)(_mtl(?=_|$))?.*")
MODEL_FILE = re.compile(r"run_(\d+)_iteration_(\d+)_model\.pth")
EXAMPLE = "cifar100_nfg50_ncls2_nproto20_mtl_exp01"


def settings_in_name(name: str) -> dict[str, Any]:
    """What a folder name says: {} if it is not made like `cifar100_nfg50_ncls2_nproto20_mtl_exp01`."""
    found = FOLDER_NAME.fullmatch(name)
    if not found:
        return {}
    first, per_phase, per_class = map(int, found.groups()[1:4])
    return {
        "dataset": found[1],
        "nb_cl_fg": first,
        "nb_cl": per_phase,
        "nb_protos": per_class,
        "weight_transfer": found[5] is not None,
    }


def authors_settings(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Settings by the folder's name; flags override. Raises UsageError where one is not known or does not fit."""
    said = settings_in_name(folder.resolve().name)
    said |= {k: getattr(options, k) for k in FIXED if getattr(options, k) is not None}
    unknown = [f"--{name}" for name in ("dataset", "nb_cl_fg", "nb_cl") if name not in said]
    if unknown:
        raise UsageError(f"{folder}: the name is not like {EXAMPLE}; say {' '.join(unknown)}")
    if said["nb_cl"] < 1 or said["nb_cl_fg"] % said["nb_cl"]:
        raise UsageError(f"--nb_cl {said['nb_cl']}: the authors' code counts in groups that divide the "
                         f"{said['nb_cl_fg']} classes of phase 0")  # fmt: skip
    return said


def authors_target(path: Path, options: argparse.Namespace) -> Target:
    """A folder of the authors' code, or a single file in one. Settings come from the folder's name; flags override.

    Raises:
        UsageError: where the settings are not known or do not fit the names of the files.
    """
    folder = path if path.is_dir() else path.parent
    run, files, notices = model_files(path)
    said = authors_settings(folder, options)
    order, notice = stored_order(folder, run, options)
    config = with_flags(ExperimentConfig(**said), options)
    start = said["nb_cl_fg"] // said["nb_cl"] - 1  # the iteration of phase 0
    name = folder.resolve().name if path.is_dir() else f"{folder.resolve().name}_{path.stem}"
    phases = {iteration - start: file for iteration, file in files.items()}
    return Target(name, path, "authors", config, order, phases, "cnn", load_authors, (*notices, notice))


def model_files(path: Path) -> tuple[int, dict[int, Path], tuple[str, ...]]:
    """The number r of the run, its files by iteration k, and what to say about other runs. Of several runs in a folder
    the first one is taken; a file names its own."""
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(MODEL_FILE.fullmatch(file.name), file) for file in paths]
    named = [(int(match[1]), int(match[2]), file) for match, file in found if match]
    if not named:
        raise UsageError(f"{path}: holds no run_<r>_iteration_<k>_model.pth; give the folder that does")
    run = min(run for run, _, _ in named)
    others = sorted({r for r, _, _ in named} - {run})
    notices = tuple(f"run {r} is there too and was left out; its files can be given one by one" for r in others)
    return run, dict(sorted((iteration, file) for r, iteration, file in named if r == run)), notices


def stored_order(folder: Path, run: int, options: argparse.Namespace) -> tuple[tuple[int, ...] | None, str]:
    """The class order of the pickle beside the models, None where it follows from the seed; and a line that says so."""
    stored = sorted(folder.glob(f"seed_*_order_run_{run}.pkl"))
    if options.order_seed is not None or not stored:
        seed = ExperimentConfig.order_seed if options.order_seed is None else options.order_seed
        return None, f"class order: made from seed {seed}"
    if len(stored) > 1:
        raise UsageError(f"{folder}: several class orders, {' and '.join(p.name for p in stored)}; say --order_seed")
    return read_order(stored[0]), f"class order: read from {stored[0].name}"


def load_authors(_: int, path: Path, device: torch.device) -> Loaded:
    """Raises UsageError."""
    network = read_network(path)
    model = network.model.to(device, memory_format=torch.channels_last)
    return Loaded(model, network.name, None, network.image_size)
