"""Checkpoints of the authors' code: folders <name>/run_<r>_iteration_<k>_model.pth, k counting groups of classes."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.stored import FIXED, Loaded, Target, with_flags
from mnemonics.legacy.checkpoints import order_of, reading
from mnemonics.legacy.networks import read_network

DATASETS = ("cifar100", "imagenet_sub", "imagenet")  # names, which are ours too
FOLDER_NAME = re.compile(
    r"(?P<dataset>cifar100|imagenet_sub|imagenet)_nfg(?P<nb_cl_fg>\d+)_ncls(?P<nb_cl>\d+)_nproto(?P<nb_protos>\d+).*"
)
MODEL_FILE = re.compile(r"run_(\d+)_iteration_(\d+)_model\.pth")
EXAMPLE = "cifar100_nfg50_ncls2_nproto20_mtl_exp01"


def authors_target(path: Path, options: argparse.Namespace) -> Target:
    """A folder of the authors' code that holds a file named like theirs, or one such file. Settings come from the
    folder's name; flags override.

    Raises:
        UsageError: where the settings are not known or do not fit the names of the files.
    """
    run, files, notices = model_files(path)
    folder = path if path.is_dir() else path.parent
    config = with_flags(ExperimentConfig(**authors_settings(folder, options)), options)
    order, notice = stored_order(folder, run, options.order_seed)
    start = config.nb_cl_fg // config.nb_cl - 1  # the iteration of phase 0
    name = folder.resolve().name if path.is_dir() else f"{folder.resolve().name}_{path.stem}"
    phases = {iteration - start: file for iteration, file in files.items()}

    def load(_: int, file: Path, device: torch.device) -> Loaded:
        loaded = read_network(file)
        loaded.model.to(device, memory_format=torch.channels_last)
        return loaded

    return Target(name, path, "authors", config, order, None, phases, "cnn", load, (*notices, notice), run)


def model_files(path: Path) -> tuple[int, dict[int, Path], list[str]]:
    """The number r of the run, its files by iteration k, and what to say about other runs: of several in a folder the
    first one is taken."""
    runs: dict[int, dict[int, Path]] = {}
    for file in path.iterdir() if path.is_dir() else [path]:
        if named := MODEL_FILE.fullmatch(file.name):
            runs.setdefault(int(named[1]), {})[int(named[2])] = file
    first, *others = sorted(runs)
    notices = [f"run {r} is there too and was left out; its files can be given one by one" for r in others]
    return first, dict(sorted(runs[first].items())), notices


def authors_settings(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Settings by the folder's name; flags override. Raises UsageError where one is not known or does not fit."""
    named = FOLDER_NAME.fullmatch(folder.resolve().name)
    said: dict[str, Any] = {}
    if named:
        said = {name: int(named[name]) for name in ("nb_cl_fg", "nb_cl", "nb_protos")}
        said["dataset"] = named["dataset"]
    said |= {name: getattr(options, name) for name in FIXED if getattr(options, name) is not None}
    unknown = [f"--{name}" for name in ("dataset", "nb_cl_fg", "nb_cl") if name not in said]
    if unknown:
        raise UsageError(f"{folder}: the name is not like {EXAMPLE}; say {' '.join(unknown)}")
    if said["nb_cl"] < 1 or said["nb_cl_fg"] % said["nb_cl"]:
        raise UsageError(f"--nb_cl {said['nb_cl']}: must divide the {said['nb_cl_fg']} classes of phase 0")
    return said


def stored_order(folder: Path, run: int, seed: int | None) -> tuple[tuple[int, ...] | None, str]:
    """The class order of the pickle beside the models, None where it follows from the seed; and a line that says so."""
    stored = sorted(folder.glob(f"seed_*_order_run_{run}.pkl"))
    if seed is not None or not stored:
        which = f"shuffle {run + 1} of " if run else ""
        return None, f"class order: made from {which}seed {ExperimentConfig.order_seed if seed is None else seed}"
    if len(stored) > 1:
        raise UsageError(f"{folder}: several class orders, {' and '.join(p.name for p in stored)}; say --order_seed")
    return reading(stored[0], order_of), f"class order: read from {stored[0].name}"
