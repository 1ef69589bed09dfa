"""What can be evaluated: a common form for our run folders and checkpoints, and for the authors' (`authors.py`)."""

import argparse
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnemonics.baselines import BASELINES
from mnemonics.config.fields import FIELDS, ExperimentConfig, check
from mnemonics.data.batches import LabelledImages
from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.legacy.checkpoints import refuse_what_is_no_pickle
from mnemonics.legacy.records import LegacyError
from mnemonics.models import restore_network
from mnemonics.protocol import Phase, Protocol, phase_sizes

FIXED = ("dataset", "nb_cl_fg", "nb_cl", "order_seed")  # settings that our checkpoints know better than a flag
PHASE_FILE = re.compile(r"phase_(\d+)\.pt")


@dataclass(frozen=True)
class Loaded:
    """The network of one phase, on the device, and what is stored with it."""

    model: nn.Module
    network: str  # its name
    exemplars: LabelledImages | None  # what NME needs
    image_size: int | None = None  # height and width in pixels that it needs; None: any


@dataclass(frozen=True)
class Target:
    """Something to evaluate: a network for each of some phases."""

    name: str  # of the output folder
    path: Path  # as the user gave it
    kind: str  # "run" or "authors"
    config: ExperimentConfig  # data set, phases (nb_cl_fg, nb_cl), order_seed, device, eval_batch_size, ncm
    order: tuple[int, ...] | None  # order[label] = class id; None: made from config.order_seed
    files: dict[int, Path]  # phase -> file, sorted
    headline: str  # the classifier that the paper's table shows for the baseline
    load: Callable[[int, Path, torch.device], Loaded]  # raises UsageError
    notices: tuple[str, ...] = ()


def protocol_of(order: tuple[int, ...], first: int, per_phase: int) -> Protocol:
    """A stored class order cut into phase 0 with `first` classes and phases of `per_phase`. Raises UsageError."""
    phase_sizes(len(order), None, first, per_phase)
    bounds = [0, *range(first, len(order) + 1, per_phase)]
    phases = tuple(Phase(i, a, b, order[a:b]) for i, (a, b) in enumerate(itertools.pairwise(bounds)))
    return Protocol(order, phases)


def with_flags(config: ExperimentConfig, options: argparse.Namespace) -> ExperimentConfig:
    """The settings of this machine and this evaluation come from the command line, where it says any."""
    given = {name: getattr(options, name) for name in ("data_dir", "eval_batch_size") if getattr(options, name)}
    ncm = config.ncm or options.ncm
    return dataclasses.replace(config, **given, ncm=ncm, device=options.device, gpu=None)


def own_target(path: Path, options: argparse.Namespace) -> Target:
    """A run folder of this program, or a single checkpoint. Every setting comes from what is stored.

    Raises:
        UsageError: for files that cannot be used, and for flags that contradict what is stored.
    """
    files = phase_files(path) if path.is_dir() else {}
    state = read_state(files[min(files)] if files else path, torch.device("cpu"))
    files = files or {state["phase"]: path}
    settings = {name: value for name, value in state["settings"].items() if name in FIELDS}
    for name in FIXED:
        if getattr(options, name) not in (None, settings[name]):
            raise UsageError(f"--{name} {getattr(options, name)}: {path} was made with {settings[name]}; leave it out")
    config = with_flags(ExperimentConfig(**settings), options)
    order = tuple(state["class_order"])
    name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}_{path.stem}"
    load = functools.partial(load_own, config, order)
    return Target(name, path, "run", config, order, files, BASELINES[config.baseline].headline, load)


def phase_files(folder: Path) -> dict[int, Path]:
    """phase -> file of the phase_<i>.pt in a folder."""
    found = [(PHASE_FILE.fullmatch(path.name), path) for path in folder.iterdir()]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The content of one of our checkpoints. Raises UsageError."""
    try:
        with path.open("rb") as file:
            refuse_what_is_no_pickle(file.read(4096))
        state = checkpoint.load(path, device)
        if is_whole(state):
            return state
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except LegacyError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # torch.load promises no closed list of errors
        if "checkpoint format" in str(error):
            raise UsageError(str(error)) from error
    raise UsageError(
        f"{path}: not a checkpoint of this program, or a damaged one (networks of the authors' code are called "
        "run_<r>_iteration_<k>_model.pth; eval/convert_legacy.py turns them into our format)"
    )


def is_whole(state: dict[str, Any]) -> bool:
    """Whether everything is there that is read before the network, and makes sense. Raises whatever if not, too."""
    settings, order = state["settings"], state["class_order"]
    check(ExperimentConfig(**settings))
    counts = [settings[name] for name in ("nb_cl_fg", "nb_cl", "order_seed")]
    return (
        all(isinstance(value, FIELDS[name].type) for name, value in settings.items())
        and settings["baseline"] in BASELINES
        and all(type(count) is int for count in (*counts, state["phase"]))
        and sorted(order) == list(range(len(order)))
    )


def load_own(config: ExperimentConfig, order: tuple[int, ...], index: int, path: Path, device: torch.device) -> Loaded:
    state = read_state(path, device)
    if state["phase"] != index or tuple(state["class_order"]) != order:
        raise UsageError(f"{path}: of another run or phase than its name and the files beside it say")
    try:
        model = restore_network(config.network, state["model"], device)
        memory, held_out = (LabelledImages(**state[name]) for name in ("exemplars", "held_out"))
    except (KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: its weights do not fit the network {config.network} ({reason[:200]})") from error
    return Loaded(model, config.network, memory.and_also(held_out) if len(memory) else None)
