"""What can be evaluated: a common form for our run folders and checkpoints, and those of the authors' code."""

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnemonics.baselines import BASELINES
from mnemonics.config.command_line import check
from mnemonics.config.fields import SETTINGS, ExperimentConfig
from mnemonics.config.presets import OLDER
from mnemonics.data.batches import LabelledImages, Preprocessing
from mnemonics.data.identity import Identity, difference, identity_of, order_by_name
from mnemonics.data.images import DataError
from mnemonics.data.scenario import Scenario
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.engine.device import pick_device, prepare
from mnemonics.engine.errors import UsageError
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.experiment.run_folder import memory_of
from mnemonics.experiment.state import CHOICES
from mnemonics.models import restore_network
from mnemonics.protocol import Phase, Protocol, class_order, make_protocol, phase_sizes

FIXED = ("dataset", "nb_cl_fg", "nb_cl", "order_seed")  # settings that our checkpoints know better than a flag
PHASE_FILE = re.compile(r"phase_(\d+)\.pt")


@dataclass(frozen=True)
class Loaded:
    """The network of one phase, on the device, and what is stored with it."""

    model: nn.Module
    network: str  # its name
    memory: ExemplarMemory | None  # None where none is stored
    image_size: int | None = None  # height and width in pixels that it needs; None: any

    @property
    def exemplars(self) -> LabelledImages | None:
        """What NME needs."""
        return self.memory.data if self.memory else None


@dataclass(frozen=True)
class Target:
    """Something to evaluate: a network for each of some phases."""

    name: str  # of the output folder
    path: Path  # as the user gave it
    kind: str  # "run" or "authors"
    config: ExperimentConfig  # data set, phases (nb_cl_fg, nb_cl), order_seed, device, eval_batch_size, ncm
    order: tuple[int, ...] | None  # order[label] = class id; None: made from config.order_seed and `run`
    data: Identity | None  # of the data set that the class ids are of, where it is known
    files: dict[int, Path]  # phase -> file, sorted
    headline: str  # the classifier that the paper's table shows for the baseline
    load: Callable[[int, Path, torch.device], Loaded]  # raises UsageError
    notices: tuple[str, ...] = ()
    run: int = 0  # see `class_order`


def with_flags(config: ExperimentConfig, options: argparse.Namespace) -> ExperimentConfig:
    """The settings of this machine and this evaluation come from the command line, where it says any."""
    given = {name: getattr(options, name, None) for name in ("data_dir", "eval_batch_size", "device", "ncm")}
    return dataclasses.replace(config, gpu=None, **{name: value for name, value in given.items() if value})


def own_target(path: Path, options: argparse.Namespace) -> Target:
    """A run folder of this program, or a single checkpoint. Every setting comes from what is stored.

    Raises:
        UsageError: for files that cannot be used, and for flags that contradict what is stored.
    """
    files = phase_files(path)
    if path.is_dir() and not files:
        raise UsageError(f"{path}: holds no phase_<i>.pt; name a run folder (eval/evaluate.py takes the authors' too)")
    state = read_state(files[min(files)] if files else path, torch.device("cpu"))
    for name in FIXED:
        given, known = getattr(options, name, None), state["settings"][name]
        if given not in (None, known):
            raise UsageError(f"--{name} {given}: {path} was made with {known}; leave it out")
    config, order = with_flags(ExperimentConfig(**state["settings"]), options), tuple(state["class_order"])
    name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}_{path.stem}"
    load, files = functools.partial(load_own, config, order), files or {state["phase"]: path}
    headline, data = BASELINES[config.baseline].headline, state.get("data")
    return Target(name, path, "run", config, order, data, files, headline, load)


def phase_files(folder: Path) -> dict[int, Path]:
    """phase -> its checkpoint in a run folder, sorted; none where that is no folder."""
    found = [(PHASE_FILE.fullmatch(file.name), file) for file in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(match[1]), file) for match, file in found if match))


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The content of one of our checkpoints. Raises UsageError."""
    try:
        state = upgraded(checkpoint.load(path, device, oldest=checkpoint.OLDEST))
        check_content(state)
        check(ExperimentConfig(**state["settings"]))
        return state
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.load promises no closed list of errors
        raise UsageError(
            f"{path}: not a checkpoint of this program, or a damaged one ({error!s:.200}); networks of the authors' "
            "code are called run_<r>_iteration_<k>_model.pth"
        ) from error


def check_content(state: dict[str, Any]) -> None:
    """Raises ValueError, or what Python raises for missing keys and other types, for a content that no run writes."""
    for name, value in state["settings"].items():
        known = SETTINGS[name]
        fits = isinstance(value, known.annotation | (int if known.type is float else known.type))
        if not fits or (value is not None and name in CHOICES and value not in CHOICES[name]):
            raise ValueError(f"with --{name} {value}, which this version does not know")
    order, exemplars, data = state["class_order"], state["exemplars"], state.get("data")
    if sorted(order) != list(range(len(order))) or not isinstance(state["phase"], int):
        raise ValueError("without a class order or the number of its phase")
    labels, images = exemplars["labels"], exemplars.get("images")
    if (labels.dtype, labels.dim()) != (torch.int64, 1) or not set(labels.tolist()) <= set(order):
        raise ValueError("with exemplars of no classes")
    form = None if images is None else (images.dtype, images.dim(), *images.shape[:2])
    if form not in (None, (torch.uint8, 4, len(labels), 3)):
        raise ValueError("with exemplars that are no images")
    if data is not None and not is_identity(data, len(order)):
        raise ValueError("with a description of its data that is none")


def is_identity(data: Identity, classes: int) -> bool:
    """Whether it has the form of what `identity_of` gives, as far as versions have had it."""
    size, names = data.get("image_size"), data["class_names"]
    numbers = [*data["train_images"], *data["test_images"], *data.get("mean", ()), *data.get("std", ())]
    return (
        len(names) == classes
        and all(isinstance(text, str) for text in (*names, data["fingerprint"]))
        and all(isinstance(number, int | float) for number in numbers)
        and (size is None or (isinstance(size, int) and size > 0))
    )


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of a finished phase as this version writes it. What finished runs left stays readable."""
    state["settings"] = OLDER | {name: value for name, value in state["settings"].items() if name in SETTINGS}
    if state["format"] == 3:
        exemplars, held_out = state["exemplars"], state.pop("held_out")
        counts = torch.tensor([len(exemplars["labels"]), len(held_out["labels"])])
        joined = {name: torch.cat([exemplars[name], held_out[name]]) for name in ("images", "labels")}
        mask = torch.tensor([False, True]).repeat_interleave(counts).to(joined["labels"].device)
        state["exemplars"] = joined | {"held_out": mask}
    return state


def load_own(config: ExperimentConfig, order: tuple[int, ...], index: int, path: Path, device: torch.device) -> Loaded:
    """Raises UsageError."""
    state = read_state(path, device)
    if state["phase"] != index or tuple(state["class_order"]) != order:
        raise UsageError(f"{path}: of another run or phase than its name and the files beside it say")
    return restored(config, state, path, device)


def restored(config: ExperimentConfig, state: dict[str, Any], path: Path, device: torch.device) -> Loaded:
    """What the checkpoint `path` holds, whose content is `state`. Raises UsageError."""
    try:
        memory, model = memory_of(state["exemplars"], config), restore_network(config.network, state["model"], device)
    except DataError as error:
        raise UsageError(f"{path}: {error}") from error
    except (KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: its weights do not fit the network {config.network} ({reason:.200})") from error
    return Loaded(model, config.network, memory)


def protocol_of(target: Target, num_classes: int) -> Protocol:
    """The class order of a target, cut into its phases. Raises UsageError where they do not fit `num_classes`."""
    config = target.config
    order = target.order or class_order(num_classes, config.order_seed, target.run)
    if len(order) != num_classes:
        raise UsageError(f"{target.path}: its class order has {len(order)} classes, {config.dataset} has {num_classes}")
    return make_protocol(order, phase_sizes(num_classes, None, config.nb_cl_fg, config.nb_cl))


def scenario_of(target: Target) -> Scenario:
    """Data, class order and device. Raises UsageError, also for files of phases that there are not."""
    config = target.config
    device = pick_device(config.device, config.gpu)
    prepare(device, config.deterministic)
    source = load_source(config)
    num_classes = source.num_classes
    if target.data is not None and (differs := difference(target.data, now := identity_of(source))):
        target = dataclasses.replace(target, order=order_by_name(target.order, target.data, now))
        num_classes = len(target.order)  # there may be more by now
        source = dataclasses.replace(source, notices=(*source.notices, f"other data than the run's: {differs}"))
    protocol = protocol_of(target, num_classes)
    for index, file in target.files.items():
        if not 0 <= index < len(protocol.phases):
            raise UsageError(f"{file}: would be of phase {index}, which there is not with {sizes(config)}")
    return Scenario(config, source, protocol, Preprocessing.of(source, device), device)


def check_fit(scenario: Scenario, phase: Phase, file: Path, loaded: Loaded) -> None:
    """Raises UsageError where the network is for another number of classes or another size of images."""
    config, classes, size = scenario.config, len(loaded.model.classifier.weight), scenario.source.image_size
    if classes != phase.seen:
        there_are = f"after phase {phase.index} there are {phase.seen} with {sizes(config)}"
        raise UsageError(f"{file}: a network for {classes} classes, {there_are}")
    if loaded.image_size not in (None, size):
        needed = f"{file} needs {loaded.image_size}x{loaded.image_size}"
        raise UsageError(f"--dataset {config.dataset}: images of {size}x{size} pixels, {needed}")


def sizes(config: ExperimentConfig) -> str:
    return f"--nb_cl_fg {config.nb_cl_fg} and --nb_cl {config.nb_cl}"
