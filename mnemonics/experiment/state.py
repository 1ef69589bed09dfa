"""From the settings to everything a run needs, and what a phase leaves to the next one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnemonics.baselines import BASELINES
from mnemonics.config import command_line
from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import budget, run_name, settled
from mnemonics.data.batches import Preprocessing
from mnemonics.data.files import check_shared_memory
from mnemonics.data.image_source import ImageSource
from mnemonics.data.scenario import Scenario
from mnemonics.data.sources import SOURCES, load_source
from mnemonics.engine.device import pick_device, prepare
from mnemonics.engine.distributed import main_first, world
from mnemonics.engine.errors import UsageError
from mnemonics.exemplars.codec import Codec
from mnemonics.exemplars.memory import ExemplarMemory, check_budget
from mnemonics.exemplars.methods import EXEMPLARS, adjusts
from mnemonics.models import NETWORKS
from mnemonics.protocol import class_order, hash_of_order, make_protocol, phase_sizes, read_order

CHOICES = {  # settings whose values are the keys of a dict
    "dataset": SOURCES,
    "baseline": BASELINES,
    "exemplars": EXEMPLARS,
    "network": ("auto", *NETWORKS),
}


def parse_args(arguments: Sequence[str] | None = None) -> ExperimentConfig:
    """`command_line.parse_args`, by default of the command line of the process."""
    config = command_line.parse_args(arguments, CHOICES)
    if config.exemplar_format is not None:  # else it is that of the run that is extended
        Codec.of(config)
    return config


@dataclass(frozen=True)
class Experiment:
    """What does not change from phase to phase."""

    scenario: Scenario
    folder: Path

    @property
    def config(self) -> ExperimentConfig:
        return self.scenario.config


@dataclass
class State:
    """What a phase leaves to the next one; a checkpoint holds exactly this."""

    model: nn.Module
    memory: ExemplarMemory
    phases: list[dict]  # the "phases" of results.json
    confusion: Tensor | None = None  # int64 [classes seen, classes seen], after the last phase; of the headline
    # "config" and "environment" of results.json: how and where the last phase was finished
    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


def set_up(user: ExperimentConfig) -> Experiment:
    """Load the data, settle all settings and make the run folder's name.

    Raises:
        UsageError: for whatever the user has to change.
    """
    device, source = load(user)
    return experiment_of(user, device, source)


def load(user: ExperimentConfig) -> tuple[torch.device, ImageSource]:
    """The device, ready for use, and the data set. Raises UsageError."""
    device = pick_device(user.device, user.gpu)
    prepare(device, user.deterministic)
    source = main_first(lambda: load_source(user))
    if isinstance(source.train_images, Tensor) and user.image_size is not None:
        raise UsageError(f"--image_size {user.image_size}: {user.dataset} has its own; only images of files have none")
    return device, source


def experiment_of(
    user: ExperimentConfig, device: torch.device, source: ImageSource, order: tuple[int, ...] | None = None
) -> Experiment:
    """The experiment with these data and, where it is given, this class order. Raises as `set_up`."""
    in_memory = isinstance(source.train_images, Tensor)
    size, is_bound = None if in_memory else source.image_size, BASELINES[user.baseline].is_bound()
    named, config = settled(user, source.num_classes, size, is_bound)
    if config.exemplar_format != "raw" and adjusts(config):
        again = f"--exemplar_format {config.exemplar_format}: adjusted exemplars (Eq. 10) would be coded again"
        raise UsageError(f"{again}; add --no_adjust, or leave out --adjust_always")
    held_out = BASELINES[config.baseline](config).held_out
    notice = check_budget(config, source, Codec.of(config, source.image_size), held_out)
    if notice and not is_bound:
        source = replace(source, notices=(*source.notices, notice))
    if not in_memory:
        check_shared_memory(source.train_images, max(config.train_batch_size, config.eval_batch_size))
    sizes = phase_sizes(source.num_classes, None, config.nb_cl_fg, config.nb_cl)
    if user.class_order is not None:
        order = read_order(user.class_order, source.class_names)
    elif order is not None:
        named, config = (replace(each, class_order=hash_of_order(order)) for each in (named, config))
    protocol = make_protocol(order or class_order(source.num_classes, config.order_seed), sizes)
    scenario = Scenario(config, source, protocol, Preprocessing.of(source, device), device)
    name = run_name(named, scenario.identity["fingerprint"][:8])
    return Experiment(scenario, Path(config.out or Path("runs") / name))


def announcement(experiment: Experiment, state: State, under_way: bool) -> list[str]:
    """What a run says before it starts; `under_way`: whether it goes on in the middle of a phase."""
    config, source, device = experiment.config, experiment.scenario.source, experiment.scenario.device
    unequal = isinstance(config.nb_cl, str)
    lines = [
        *source.notices,
        f"{source.name}: {source.num_classes} classes, {len(source.train_images)} training and "
        f"{len(source.test_images)} test images; phases: {config.nb_cl_fg} classes, then "
        f"{config.nb_cl if unequal else f'{config.nb_phases} x {config.nb_cl}'}",
        f"{config.baseline}, {config.exemplars} exemplars ({budget(vars(config))[0]}), weight transfer "
        f"{'on' if config.weight_transfer else 'off'}, {config.network} on {device}; "
        f"run folder {experiment.folder}",
    ]
    if world() > 1:
        backend, whole = "nccl" if device.type == "cuda" else "gloo", config.train_batch_size
        share = f"batches of {whole} in all, {whole / world():.4g} each"
        lines.append(f"{world()} processes ({backend}): {share}; learning rate as configured")
    if under_way:
        lines.append(f"resuming in phase {len(state.phases)}")
    elif state.phases:
        lines.append(f"resuming after phase {state.phases[-1]['phase']}")
    return lines
